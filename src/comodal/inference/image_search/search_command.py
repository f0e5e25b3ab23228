"""`comodal search`: finds images, audio and videos of a folder by a text, an image or a sound.

A ViLBERT scores pairs of a text and an image (search.py). All other models embed the query and the files, and compare
their vectors (inference/embedding_search/).
"""

from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from comodal.console import print_line
from comodal.flat_parameters import flatten_parameters
from comodal.inference.audio_visual import AudioVisualPipeline
from comodal.inference.ave_net_pipeline import JointEmbeddingPipeline
from comodal.inference.embedding_search.embedding_index import name_refused_file
from comodal.inference.embedding_search.embedding_searcher import EmbeddingSearcher
from comodal.inference.embedding_search.embedding_spaces import make_embedding_space
from comodal.inference.embedding_search.search_results import SearchResult, print_search_result, write_search_page
from comodal.inference.image_search.search import (
    FirstStageOptions,
    IndexOptions,
    Searcher,
    describe_search,
    open_image_index,
)
from comodal.inference.image_search.search_index import INDEX_FOLDER
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline, load_dual_encoder_pipeline
from comodal.inference.joint_space.folder_index import FindKind
from comodal.inference.load_pipeline import load
from comodal.inference.vision_language import VisionLanguagePipeline

SearchPipeline: TypeAlias = AudioVisualPipeline | JointEmbeddingPipeline | VisionLanguagePipeline | DualEncoderPipeline
DEFAULT_STAGE, DEFAULT_INDEXING = FirstStageOptions(), IndexOptions()
COMPUTE_OPTIONS = {"device", "precision"}


@flatten_parameters
def search(
    folder: Path,
    query: str,
    model: Path,
    index: Path | None = None,
    top_k: int = 10,
    find: FindKind = "auto",
    stage: FirstStageOptions = DEFAULT_STAGE,
    indexing: IndexOptions = DEFAULT_INDEXING,
    json: bool = False,
    out: Path | None = None,
) -> SearchResult:
    """Finds the files of a folder that match a text, an image or a sound, the best first.

    The model decides what can be compared. A dual encoder searches images and videos by a text or an image, an AVE-Net
    images, audio and videos by an image or audio, an L3-Net or OpenL3 images by an image and audio by audio, a ViLBERT
    images by a text. Audio and videos are searched in windows of the model's length, and results have the time.

    The first search builds an index of the folder. It can be interrupted and resumed. Later searches add new and
    changed files to the index, and leave out deleted ones.

    Args:
        folder: The folder of images, audio and videos.
        query: A text, or the path of an image, an audio file or a video, which stands for its audio.
        model: The run or model folder, or a file of OpenL3 weights. A ViLBERT is a pretrained one, or one that was
            fine-tuned by `comodal train retrieval`.
        index: Folder of the index; by default .comodal-index in the folder.
        top_k: Number of files to return.
        find: image (with the frames of videos), audio (with that of videos), or auto: with AVE-Net the other modality
            than that of the query, otherwise the one that the model compares with the query.
        stage: The first stage of the search by a ViLBERT.
        indexing: How the index is built, and how the model computes.
        json: Print JSON.
        out: A page (.html) of the images, frames and sounds.

    Returns:
        The search result.

    Raises:
        DataError: There is nothing to search, or the index is damaged, of another kind, or cannot be written.
        CheckpointError: There is no model, or it is fine-tuned for another task.
        ValueError: The model cannot compare the query with the files.

    Examples:
        comodal search photos/ "a dog on a beach" --model runs/dual
        comodal search photos/ dog.jpg --model runs/dual --top-k 20 --out dogs.html
        comodal search clips/ bark.wav --model runs/ave
        comodal search clips/ dog.jpg --model runs/ave --find audio --json
        comodal search photos/ "a dog on a beach" --model runs/vilbert --first-stage runs/dual
        comodal search photos/ "a dog on a beach" --model vilbert/ --captions captions.jsonl --regions regions/
    """
    if out is not None and out.suffix.lower() != ".html":
        raise ValueError(f"--out {out}: a page is a .html")
    searcher = open_index(folder, model, index, find=find, stage=stage, indexing=indexing)
    result = searcher.search(query, top_k)
    lines = (
        describe_search(searcher, result)
        if isinstance(searcher, Searcher)
        else describe_embedding_search(searcher, result)
    )
    for line in lines:
        print_line(line, stderr=True)
    print_search_result(result, json)
    if out is not None:
        write_search_page(out, result)
    return result


@flatten_parameters
def open_index(
    folder: Path,
    model: Path | SearchPipeline,
    index: Path | None = None,
    find: FindKind = "auto",
    stage: FirstStageOptions = DEFAULT_STAGE,
    indexing: IndexOptions = DEFAULT_INDEXING,
) -> Searcher | EmbeddingSearcher:
    """A searcher for repeated searches of a folder.

    Args:
        folder: The folder of images, audio and videos.
        model: A run or model folder, a file of OpenL3 weights, or a pipeline.
        index: Folder of the index; by default .comodal-index in the folder.
        find: image, audio, or auto.
        stage: The first stage of the search by a ViLBERT.
        indexing: How the index is built, and how the model computes.

    Raises:
        DataError: There is nothing to search, or the index is damaged, of another kind, or cannot be written.
        CheckpointError: There is no model, or it is fine-tuned for another task.
    """
    stage.check()
    if indexing.workers != -1 and indexing.workers < 1:
        raise ValueError(f"workers is a number of processes, or -1 for one per core; got {indexing.workers}")
    pipeline = load(model, indexing.device, indexing.precision) if isinstance(model, str | Path) else model
    index = index or folder / INDEX_FOLDER
    if not isinstance(pipeline, VisionLanguagePipeline):
        check_vilbert_options(stage, indexing)
        return EmbeddingSearcher(make_embedding_space(pipeline), folder, index, find)
    if find == "audio":
        raise ValueError("--find audio: a ViLBERT searches images")
    dual_encoder = None
    if stage.first_stage is not None:
        dual_encoder = load_dual_encoder_pipeline(stage.first_stage, indexing.device, indexing.precision)
    return open_image_index(folder, pipeline, index, stage, indexing, dual_encoder)


def check_vilbert_options(stage: FirstStageOptions, indexing: IndexOptions) -> None:
    """Raises ValueError if an option is given that only a ViLBERT has."""
    defaults = asdict(DEFAULT_STAGE) | asdict(DEFAULT_INDEXING)
    for name, value in (asdict(stage) | asdict(indexing)).items():
        if name not in COMPUTE_OPTIONS and value != defaults[name]:
            raise ValueError(f"--{name.replace('_', '-')} is for a ViLBERT, and this model is none")


def describe_embedding_search(searcher: EmbeddingSearcher, result: SearchResult) -> list[str]:
    """How the files were searched, in one to three lines."""
    index = searcher.open(result.item_kind).index
    lines = [
        f"{result.num_scored:,} vectors of {result.num_files:,} files compared in {1000 * result.seconds:.1f} ms, "
        f"{searcher.space.name}"
    ]
    if others := ", ".join(f"{count:,} {kind}" for kind, count in index.listing.num_others.items()):
        lines.append(f"not searched, because {result.item_kind} is: {others} files")
    if index.num_refused:
        lines.append(f"{index.num_refused:,} more cannot be read: {name_refused_file(index.prefix)}")
    return lines
