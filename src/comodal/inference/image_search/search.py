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
from comodal.regions.extract import ExtractionPool, load_extractor_of_model
from comodal.tasks.retrieval.caption_retrieval import RETRIEVAL_HEAD, select_scoring_head
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
        score_is: The kind of the scores.
        best: The best images, in descending order.
        pictures: Number of images in the index.
        scored: Number of images that the model scored.
        first_stage_milliseconds: For all images; None without a first stage.
        recall: Recall of the first stage, measured on held-out captions; None if it was not measured.
        seconds: Duration of the whole search.
    """

    text: str
    score_is: str
    best: Sequence[SearchHit]
    pictures: int
    scored: int
    first_stage_milliseconds: float | None
    recall: float | None
    seconds: float


@dataclass(frozen=True)
class Searcher:
    """Searches images by text.

    Args:
        answerer: The model.
        pictures: The indexed images.
        stage: The first stage; without it the model scores all images.
        rerank: Number of the first stage's best images that the model scores.
        compute: Device and precision of the model.
    """

    answerer: VisionLanguagePipeline
    pictures: IndexedImages
    stage: FirstStage | None
    rerank: int
    compute: Compute

    def search(self, text: str, top: int = 10) -> SearchResult:
        """The images that match a text best.

        Args:
            text: The query.
            top: Number of images.
        """
        check_query_text(self.answerer, text)
        if top < 1 or (self.stage is not None and top > self.rerank):
            raise ValueError(
                f"top ({top}) must be from 1 to rerank ({self.rerank}), how many pictures the model scores"
            )
        began, places, milliseconds = time.perf_counter(), np.arange(len(self.pictures)), None
        if self.stage is not None:
            places = self.stage.nearest(self.answerer, text, self.pictures, self.rerank, self.compute)
            milliseconds = 1000 * (time.perf_counter() - began)
        places = np.sort(places)  # equal scores keep the order of the names
        scores = self.scores(text, places)
        best = np.argsort(-scores, kind="stable")[:top]
        if not self.fine_tuned:
            scores = torch.from_numpy(scores).sigmoid().numpy()
        hits = [
            SearchHit(self.pictures.folder / self.pictures.names[places[i]], float(scores[i])) for i in best.tolist()
        ]
        return SearchResult(
            text=text,
            score_is="score" if self.fine_tuned else "P(aligned)",
            best=hits,
            pictures=len(self.pictures),
            scored=len(places),
            first_stage_milliseconds=milliseconds,
            recall=None if self.stage is None else self.stage.recall(self.rerank, len(self.pictures)),
            seconds=time.perf_counter() - began,
        )

    @property
    def fine_tuned(self) -> bool:
        """Whether the scores are those of a head fine-tuned for retrieval, instead of alignment."""
        return isinstance(self.answerer.model, TaskModel)

    def scores(self, text: str, places: Int64[np.ndarray, "some"]) -> Float32[np.ndarray, "some"]:
        """The model's scores of a text with some images."""
        found = np.empty(len(places), np.float32)
        for start in range(0, len(places), IMAGES_PER_PART):
            rows = self.pictures.rows[places[start : start + IMAGES_PER_PART]]
            gallery = build_search_gallery(
                self.answerer, [(make_query_caption(text), row) for row in rows.tolist()], self.pictures.store
            )
            way = select_scoring_head(self.answerer.model, zero_shot=False)
            scorer = PairScorer(self.answerer.vilbert, gallery, self.compute, score=way)
            images = np.searchsorted(gallery.rows, rows)
            found[start : start + IMAGES_PER_PART] = scorer.pairs(np.zeros_like(images), images)
        return found


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
            raise ValueError("--captions and --regions go together: captions, and the region store of their images")


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
    top: int = 10,
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
        top: Number of images to return.
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
        comodal search photos/ "a dog on a beach" --model runs/vilbert --top 20 --out dogs.html
        comodal search photos/ "a dog on a beach" --model vilbert/ --captions captions.jsonl --regions regions/
    """
    if out is not None and out.suffix.lower() != ".html":
        raise ValueError(f"--out {out}: a page is a .html")
    opened = open_index(folder, model, index, stage=stage, indexing=indexing)
    found = opened.search(text, top)
    for line in describe_search(opened, found):
        print_line(line, stderr=True)
    print_search_result(found, json)
    if out is not None:
        write_search_page(out, found)
    return found


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
        answerer = model
    else:
        answerer = load_vision_language(model, indexing.device, indexing.precision)
    model = answerer.folder
    check_pair_scoring(answerer)
    new_pool = partial(create_extraction_pool, folder, model, indexing.detector, workers, indexing.device)
    made_from = answerer.regions["made_from"]
    pictures = update_index(folder, index or folder / INDEX_FOLDER, made_from, indexing.boxes, new_pool)
    check_same_regions(find_model_folder(model), pictures.store)
    fitted = None
    if len(pictures) > stage.rerank:
        known = None
        if stage.captions is not None and stage.regions is not None:
            known = CaptionedRegions(stage.captions, stage.regions)
        fitted = build_first_stage(answerer, pictures, known, answerer.compute)
    return Searcher(answerer, pictures, fitted, stage.rerank, answerer.compute)


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
        raise DataError(f"{model} has learnt from given boxes: --boxes FILE says where they are in these pictures")
    return ExtractionPool(extractor, folder, device, workers, "loky")


def check_pair_scoring(answerer: VisionLanguagePipeline) -> None:
    """Checks that the model scores pairs of a text and regions.

    Raises:
        CheckpointError: It is fine-tuned for another task.
        DataError: It takes other inputs.
    """
    model, config = answerer.model, answerer.vilbert.config
    if isinstance(model, TaskModel) and RETRIEVAL_HEAD.name not in model.heads:
        there = ", ".join(model.heads)
        raise CheckpointError(
            f"{answerer.folder} is fine-tuned for {there}: search with a pretrained run, or with one of "
            "`comodal train retrieval`"
        )
    if config.task_tokens:
        raise DataError(f"{answerer.folder} has task tokens (12-in-1); fine-tune it for retrieval to search with it")
    if config.region_tokens:
        raise DataError(f"{answerer.folder} reads visual tokens, which are not made of new pictures; train on features")


def check_query_text(answerer: VisionLanguagePipeline, text: str) -> None:
    """Checks that the query has words, and prints a warning if the vocabulary has none of them."""
    pieces = answerer.words.encode(text)[1:-1]
    if not pieces:
        raise ValueError("the text is empty: say what the pictures show")
    if all(piece == answerer.words.unknown for piece in pieces):
        print_line(
            f"warning: {answerer.folder} knows none of the words of {text!r}, so the order of the pictures says "
            "nothing",
            stderr=True,
        )


def describe_search(opened: Searcher, found: SearchResult) -> list[str]:
    """How the images were searched, in one or two lines."""
    stage, count = opened.stage, found.pictures
    lines = []
    if stage is not None:
        lines.append(
            f"first stage: {count:,} pictures in {found.first_stage_milliseconds:.1f} ms, {found.scored:,} kept"
        )
        if found.recall is None:
            lines.append("how often it keeps the right one is not known: there are no held-out captions")
        else:
            share, held_out = stage.share(opened.rerank, count), stage.learnt.held_out
            lines.append(
                f"measured on {len(stage.ranks):,} held-out captions: as large a share, the first {share:,} of "
                f"{held_out:,} pictures, has the right one for {found.recall:.1%} of them"
            )
    elif count > opened.rerank:
        lines.append(
            "there is no first stage, so the model scores every picture: --captions FILE --regions STORE fit one, on "
            "captions of images whose regions are of the same kind"
        )
    lines.append(f"{found.scored:,} of {count:,} pictures scored, {found.seconds:.2f} s in all")
    if opened.pictures.refused:
        lines.append(f"{opened.pictures.refused:,} more cannot be read: {opened.pictures.index / 'refused.jsonl'}")
    return lines


def print_search_result(found: SearchResult, as_json: bool) -> None:
    """Prints the result as text or as JSON."""
    if as_json:
        best = [{"image": str(hit.image), "score": hit.score} for hit in found.best]
        print_json(vars(found) | {"best": best})
        return
    print_line(f"{found.score_is:>10}  picture")
    for hit in found.best:
        print_line(f"{hit.score:10.3f}  {hit.image}")


def write_search_page(out: Path, found: SearchResult) -> None:
    """Writes a page of thumbnails."""
    images = []
    for rank, hit in enumerate(found.best, 1):
        picture = read_image(hit.image)
        small = resize_short_side(picture, min(HIT_THUMBNAIL_SIDE, *picture.shape[:2]))
        images.append(PageImage(hit.image.name, encode_photo_uri(small), f"{rank}. {hit.score:.3f}", hit.image.name))
    measure = "score" if found.score_is == "score" else "probability of alignment"
    text = f"The best {len(found.best):,} of {found.pictures:,} images by {measure}."
    write_page(out, found.text, [PageSection("Search results", text, [PageImageRow(images)])])
