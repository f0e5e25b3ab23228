"""`comodal search`: text-to-image retrieval in a folder of images.

The folder's index (search_index.py) is built once. A first stage (search_first_stage.py) ranks all images by one matrix
product, and the model reranks the best of them with the text. Without a first stage the model scores all images.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64

from comodal.analysis.pages.html_page import write_page
from comodal.analysis.pages.page_parts import PageImage, PageImageRow, PageSection, encode_photo_uri
from comodal.console import print_json, print_line
from comodal.data.regions.region_compatibility import check_same_regions
from comodal.errors import CheckpointError, DataError
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import Compute, ComputeOptions, DeviceName
from comodal.inference.image_search.search_first_stage import (
    IMAGES_PER_PART,
    CaptionedRegions,
    FirstStage,
    build_first_stage,
    build_search_gallery,
    make_query_caption,
)
from comodal.inference.image_search.search_index import BOX_SOURCES, INDEX_FOLDER, IndexedImages, update_index
from comodal.inference.vision_language import VisionLanguagePipeline, load_vision_language
from comodal.media.image import read_image, resize_short_side
from comodal.models.checkpoint import find_model_folder
from comodal.models.vilbert.task_model import TaskModel
from comodal.regions.extract import ExtractionPool, ExtractionWorkers, load_extractor_of_model
from comodal.tasks.retrieval.gallery_ranking import RETRIEVAL_HEAD, select_scoring_head
from comodal.tasks.retrieval.pair_scores import PairScorer

HIT_THUMBNAIL_SIDE = 224  # short side of an image on a page, in pixels


class SearchHit(NamedTuple):
    """An image with its score: the probability of a match, or the score of a model fine-tuned for retrieval."""

    image: Path
    score: float


@dataclass(frozen=True)
class SearchResult:
    """The best images, with statistics of the search.

    Args:
        text: The query.
        score_kind: What the scores are: a score of retrieval, or the probability of alignment.
        best: The best images, in descending order.
        num_images: Number of images in the index.
        num_scored: Number of images that the model scored.
        first_stage_milliseconds: For all images; None without a first stage.
        recall: Recall of the first stage, measured on held-out captions; None if it was not measured.
        seconds: Duration of the whole search.
    """

    text: str
    score_kind: str
    best: Sequence[SearchHit]
    num_images: int
    num_scored: int
    first_stage_milliseconds: float | None
    recall: float | None
    seconds: float


@dataclass(frozen=True)
class Searcher:
    """Searches images by text.

    Args:
        pipeline: The model.
        images: The indexed images.
        stage: The first stage; without it the model scores all images.
        rerank: Number of the first stage's best images that the model scores.
        compute: Device and precision of the model.
    """

    pipeline: VisionLanguagePipeline
    images: IndexedImages
    stage: FirstStage | None
    rerank: int
    compute: Compute

    def search(self, text: str, top_k: int = 10) -> SearchResult:
        """The images that match a text best.

        Args:
            text: The query.
            top_k: Number of images.
        """
        check_query_text(self.pipeline, text)
        if top_k < 1 or (self.stage is not None and top_k > self.rerank):
            raise ValueError(
                f"top_k ({top_k}) must be from 1 to rerank ({self.rerank}), the number of images that the model scores"
            )
        start_seconds, indices, milliseconds = time.perf_counter(), np.arange(len(self.images)), None
        if self.stage is not None:
            indices = self.stage.find_nearest(self.pipeline, text, self.images, self.rerank, self.compute)
            milliseconds = 1000 * (time.perf_counter() - start_seconds)
        indices = np.sort(indices)  # equal scores keep the order of the names
        scores = self.compute_scores(text, indices)
        best = np.argsort(-scores, kind="stable")[:top_k]
        if not self.is_fine_tuned:
            scores = torch.from_numpy(scores).sigmoid().numpy()
        hits = [SearchHit(self.images.folder / self.images.names[indices[i]], float(scores[i])) for i in best.tolist()]
        return SearchResult(
            text=text,
            score_kind="score" if self.is_fine_tuned else "probability",
            best=hits,
            num_images=len(self.images),
            num_scored=len(indices),
            first_stage_milliseconds=milliseconds,
            recall=None if self.stage is None else self.stage.compute_recall(self.rerank, len(self.images)),
            seconds=time.perf_counter() - start_seconds,
        )

    @property
    def is_fine_tuned(self) -> bool:
        """Whether the scores are those of a head fine-tuned for retrieval, instead of alignment."""
        return isinstance(self.pipeline.model, TaskModel)

    def compute_scores(self, text: str, indices: Int64[np.ndarray, "some"]) -> Float32[np.ndarray, "some"]:
        """The model's scores of a text with some images."""
        scores = np.empty(len(indices), np.float32)
        for start in range(0, len(indices), IMAGES_PER_PART):
            rows = self.images.rows[indices[start : start + IMAGES_PER_PART]]
            gallery = build_search_gallery(
                self.pipeline, [(make_query_caption(text), row) for row in rows.tolist()], self.images.store
            )
            scoring_head = select_scoring_head(self.pipeline.model, zero_shot=False)
            scorer = PairScorer(self.pipeline.vilbert, gallery, self.compute, score=scoring_head)
            images = np.searchsorted(gallery.rows, rows)
            scores[start : start + IMAGES_PER_PART] = scorer.score_pairs(np.zeros_like(images), images)
        return scores


@dataclass(frozen=True)
class FirstStageOptions:
    """The first stage of a search.

    Args:
        rerank: Number of the first stage's best images that the model scores.
        captions: Captions to fit the first stage on; by default those of the run's training data, if they exist.
        regions: The region store of the captions' images.
    """

    rerank: int = 50
    captions: Path | None = None
    regions: Path | None = None

    def check(self) -> None:
        """Raises ValueError if the options are incomplete or out of range."""
        if self.rerank < 1:
            raise ValueError(f"rerank ({self.rerank}) must be at least 1")
        if (self.captions is None) != (self.regions is None):
            raise ValueError("give both --captions and --regions: captions, and the region store of their images")


@dataclass(frozen=True)
class IndexOptions(ComputeOptions):
    """How the index of a folder is built, and how the model computes.

    Args:
        boxes: If the model was trained on given boxes: JSON Lines of `image` and `boxes`, as for `comodal extract`;
            or own, grid or selective. The index stores it.
        detector: Path of the network that makes the model's regions, if it was moved.
        workers: Processes that extract regions; -1 is one per core.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps. On a GPU this process extracts the regions alone.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16; bf16 may change the
            order of images with nearly equal scores.
    """

    boxes: str | None = None
    detector: str | None = None
    workers: int = -1


DEFAULT_STAGE, DEFAULT_INDEXING = FirstStageOptions(), IndexOptions()


@flatten_parameters
def search(
    folder: Path,
    text: str,
    model: Path,
    index: Path | None = None,
    top_k: int = 10,
    stage: FirstStageOptions = DEFAULT_STAGE,
    indexing: IndexOptions = DEFAULT_INDEXING,
    json: bool = False,
    out: Path | None = None,
) -> SearchResult:
    """Finds the images of a folder that match a text, in descending order of probability.

    The first search builds an index of the folder, which takes as long as `comodal extract`. It can be interrupted and
    resumed. Later searches add new and changed images to the index, and leave out deleted ones.

    Args:
        folder: The folder of images.
        text: The query.
        model: A pretrained run, or one that was fine-tuned by `comodal train retrieval`.
        index: Folder of the index; by default .comodal-index in the folder.
        top_k: Number of images to return.
        stage: The first stage of the search.
        indexing: How the index is built, and how the model computes.
        json: Print JSON.
        out: A page (.html) of the images.

    Returns:
        The search result.

    Raises:
        DataError: There are no images, or the index is damaged, of another kind, or cannot be written.
        CheckpointError: There is no ViLBERT, or it is fine-tuned for another task.

    Examples:
        comodal search photos/ "a dog on a beach" --model runs/vilbert
        comodal search photos/ "a dog on a beach" --model runs/vilbert --top-k 20 --out dogs.html
        comodal search photos/ "a dog on a beach" --model vilbert/ --captions captions.jsonl --regions regions/
    """
    if out is not None and out.suffix.lower() != ".html":
        raise ValueError(f"--out {out}: a page is a .html")
    searcher = open_index(folder, model, index, stage=stage, indexing=indexing)
    result = searcher.search(text, top_k)
    for line in describe_search(searcher, result):
        print_line(line, stderr=True)
    print_search_result(result, json)
    if out is not None:
        write_search_page(out, result)
    return result


@flatten_parameters
def open_index(
    folder: Path,
    model: Path | VisionLanguagePipeline,
    index: Path | None = None,
    stage: FirstStageOptions = DEFAULT_STAGE,
    indexing: IndexOptions = DEFAULT_INDEXING,
) -> Searcher:
    """A searcher for repeated searches of a folder; the index is built or updated first.

    Args:
        folder: The folder of images.
        model: A pretrained run, or one that was fine-tuned by `comodal train retrieval`.
        index: Folder of the index; by default .comodal-index in the folder.
        stage: The first stage of the search.
        indexing: How the index is built, and how the model computes.

    Raises:
        DataError: There are no images, or the index is damaged, of another kind, or cannot be written.
        CheckpointError: There is no ViLBERT, or it is fine-tuned for another task.
    """
    stage.check()
    workers = indexing.workers
    if workers != -1 and workers < 1:
        raise ValueError(f"workers is a number of processes, or -1 for one per core; got {workers}")
    if isinstance(model, VisionLanguagePipeline):
        pipeline = model
    else:
        pipeline = load_vision_language(model, indexing.device, indexing.precision)
    model = pipeline.folder
    check_pair_scoring(pipeline)
    create_pool = partial(create_extraction_pool, folder, model, indexing.detector, workers, indexing.device)
    provenance = pipeline.regions["provenance"]
    images = update_index(folder, index or folder / INDEX_FOLDER, provenance, indexing.boxes, create_pool)
    check_same_regions(find_model_folder(model), images.store)
    fitted = None
    if len(images) > stage.rerank:
        captioned_regions = None
        if stage.captions is not None and stage.regions is not None:
            captioned_regions = CaptionedRegions(stage.captions, stage.regions)
        fitted = build_first_stage(pipeline, images, captioned_regions, pipeline.compute)
    return Searcher(pipeline, images, fitted, stage.rerank, pipeline.compute)


def create_extraction_pool(
    folder: Path, model: Path, detector: str | None, workers: int, device: DeviceName, boxes: str | None
) -> ExtractionPool:
    """A pool that extracts regions of the kind that a model was trained on.

    Raises:
        DataError: The model was trained on features from another source, or boxes are required and not given.
        CheckpointError: There is no such network.
    """
    kind: Any = boxes if boxes in (None, *BOX_SOURCES) else "given"
    extractor = load_extractor_of_model(model, detector, kind, device)
    if extractor.source.boxes == "given" and kind != "given":
        raise DataError(f"{model} was trained on given boxes: pass --boxes FILE with the boxes of these images")
    return ExtractionPool(extractor, folder, ExtractionWorkers(workers, device=device))


def check_pair_scoring(pipeline: VisionLanguagePipeline) -> None:
    """Checks that the model scores pairs of a text and regions.

    Raises:
        CheckpointError: It is fine-tuned for another task.
        DataError: It takes other inputs.
    """
    model, config = pipeline.model, pipeline.vilbert.config
    if isinstance(model, TaskModel) and RETRIEVAL_HEAD.name not in model.heads:
        head_names = ", ".join(model.heads)
        raise CheckpointError(
            f"{pipeline.folder} is fine-tuned for {head_names}: search with a pretrained run, or with one of "
            "`comodal train retrieval`"
        )
    if config.task_tokens:
        raise DataError(f"{pipeline.folder} has task tokens (12-in-1); fine-tune it for retrieval to search with it")
    if config.num_visual_tokens:
        raise DataError(f"{pipeline.folder} reads visual tokens, not features of new images; train on features")


def check_query_text(pipeline: VisionLanguagePipeline, text: str) -> None:
    """Checks that the query has words, and prints a warning if the vocabulary has none of them."""
    token_ids = pipeline.tokenizer.encode(text)[1:-1]
    if not token_ids:
        raise ValueError("the text is empty: describe the images to find")
    if all(token_id == pipeline.tokenizer.unknown_id for token_id in token_ids):
        print_line(
            f"warning: {pipeline.folder} has none of the words of {text!r} in its vocabulary, so the ranking "
            "is meaningless",
            stderr=True,
        )


def describe_search(searcher: Searcher, result: SearchResult) -> list[str]:
    """How the images were searched, in one or two lines."""
    stage, count = searcher.stage, result.num_images
    lines = []
    if stage is not None:
        lines.append(
            f"first stage: {count:,} images in {result.first_stage_milliseconds:.1f} ms, {result.num_scored:,} images "
            f"kept"
        )
        if result.recall is None:
            lines.append("recall of the first stage: unknown, because there are no held-out captions")
        else:
            num_kept, num_held_out = stage.count_held_out_kept(searcher.rerank, count), stage.training.num_held_out
            lines.append(
                f"measured on {len(stage.ranks):,} held-out captions: recall of the first {num_kept:,} of "
                f"{num_held_out:,} images is {result.recall:.1%}"
            )
    elif count > searcher.rerank:
        lines.append(
            "without a first stage the model scores every image; fit one with --captions FILE --regions STORE, on "
            "captions of images whose regions are of the same kind"
        )
    lines.append(f"{result.num_scored:,} of {count:,} images scored in {result.seconds:.2f} s")
    if searcher.images.num_refused:
        lines.append(f"{searcher.images.num_refused:,} more cannot be read: {searcher.images.index / 'refused.jsonl'}")
    return lines


def print_search_result(result: SearchResult, as_json: bool) -> None:
    """Prints the result as text or as JSON."""
    if as_json:
        best = [{"image": str(hit.image), "score": hit.score} for hit in result.best]
        print_json(vars(result) | {"best": best})
        return
    print_line(f"{result.score_kind:>11}  image")
    for hit in result.best:
        print_line(f"{hit.score:11.3f}  {hit.image}")


def write_search_page(out: Path, result: SearchResult) -> None:
    """Writes a page of thumbnails."""
    images = []
    for rank, hit in enumerate(result.best, 1):
        image = read_image(hit.image)
        thumbnail = resize_short_side(image, min(HIT_THUMBNAIL_SIDE, *image.shape[:2]))
        images.append(
            PageImage(hit.image.name, encode_photo_uri(thumbnail), f"{rank}. {hit.score:.3f}", hit.image.name)
        )
    text = f"The best {len(result.best):,} of {result.num_images:,} images by {result.score_kind}."
    write_page(out, result.text, [PageSection("Search results", text, [PageImageRow(images)])])
