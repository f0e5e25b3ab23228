"""Text-to-image retrieval in a folder of images by a ViLBERT.

The folder's index (search_index.py) is built once. A first stage (search_first_stage.py) ranks all images by one matrix
product, and the model reranks the best of them with the text. Without a first stage the model scores all images.
"""

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64

from comodal.data.regions.region_compatibility import check_same_regions
from comodal.errors import CheckpointError, DataError
from comodal.hardware import Compute, ComputeOptions, DeviceName
from comodal.inference.embedding_search.embedding_searcher import NOUNS, resolve_query
from comodal.inference.embedding_search.embedding_spaces import check_query_text
from comodal.inference.embedding_search.search_results import SearchHit, SearchResult
from comodal.inference.image_search.dual_encoder_stage import DualEncoderStage, build_dual_encoder_stage
from comodal.inference.image_search.search_first_stage import (
    IMAGES_PER_PART,
    CaptionedRegions,
    FirstStage,
    build_first_stage,
    build_search_gallery,
    make_query_caption,
)
from comodal.inference.image_search.search_index import BOX_SOURCES, IndexedImages, update_index
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline
from comodal.inference.vision_language import VisionLanguagePipeline
from comodal.models.checkpoint import find_model_folder
from comodal.models.vilbert.task_model import TaskModel
from comodal.regions.extract import ExtractionPool, ExtractionWorkers, load_extractor_of_model
from comodal.tasks.retrieval.gallery_ranking import RETRIEVAL_HEAD, select_scoring_head
from comodal.tasks.retrieval.pair_scores import PairScorer


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
    stage: FirstStage | DualEncoderStage | None
    rerank: int
    compute: Compute

    def search(self, query: str, top_k: int = 10) -> SearchResult:
        """The images that match a text best.

        Args:
            query: The text.
            top_k: Number of images.

        Raises:
            ValueError: The query is no text, or empty.
        """
        resolved = resolve_query(query)
        if resolved.kind != "text":
            raise ValueError(
                f"{resolved.name!r} is {NOUNS[resolved.kind]}, and a ViLBERT searches by a text: search by an image "
                "with a dual encoder"
            )
        text = resolved.name
        check_query_text(text, self.pipeline.tokenizer, self.pipeline.folder)
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
            query=text,
            score_kind="score" if self.is_fine_tuned else "probability",
            best=hits,
            num_files=len(self.images),
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
    """The first stage of a search by a ViLBERT.

    Args:
        rerank: Number of the first stage's best images that the model scores.
        captions: Captions to fit the first stage on; by default those of the run's training data, if they exist.
        regions: The region store of the captions' images.
        first_stage: Run of a dual encoder, which ranks the images instead of maps fitted on captions.
    """

    rerank: int = 50
    captions: Path | None = None
    regions: Path | None = None
    first_stage: Path | None = None

    def check(self) -> None:
        """Raises ValueError if the options are incomplete or out of range."""
        if self.first_stage is not None and (self.captions is not None or self.regions is not None):
            raise ValueError("--first-stage is a trained dual encoder: leave out --captions and --regions")
        if self.rerank < 1:
            raise ValueError(f"rerank ({self.rerank}) must be at least 1")
        if (self.captions is None) != (self.regions is None):
            raise ValueError("give both --captions and --regions: captions, and the region store of their images")


@dataclass(frozen=True)
class IndexOptions(ComputeOptions):
    """How the index of a folder is built, and how the model computes.

    Args:
        boxes: If the ViLBERT was trained on given boxes: JSON Lines of `image` and `boxes`, as for `comodal extract`;
            or own, grid or selective. The index stores it.
        detector: Path of the network that makes the model's regions, if it was moved.
        workers: Processes that extract regions for a ViLBERT; -1 is one per core.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps. On a GPU this process extracts the regions alone.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16; bf16 may change the
            order of images with nearly equal scores.
    """

    boxes: str | None = None
    detector: str | None = None
    workers: int = -1


def open_image_index(
    folder: Path,
    pipeline: VisionLanguagePipeline,
    index: Path,
    stage: FirstStageOptions,
    indexing: IndexOptions,
    dual_encoder: DualEncoderPipeline | None,
) -> Searcher:
    """A searcher for repeated searches of a folder; the index is built or updated first.

    Args:
        folder: The folder of images.
        pipeline: A pretrained ViLBERT, or one that was fine-tuned by `comodal train retrieval`.
        index: Folder of the index.
        stage: The first stage of the search.
        indexing: How the index is built.
        dual_encoder: The first stage; without it two linear maps are fitted.

    Raises:
        DataError: There are no images, or the index is damaged, of another kind, or cannot be written.
        CheckpointError: The model is fine-tuned for another task.
    """
    model, workers = pipeline.folder, indexing.workers
    check_pair_scoring(pipeline)
    create_pool = partial(create_extraction_pool, folder, model, indexing.detector, workers, indexing.device)
    images = update_index(folder, index, pipeline.regions["provenance"], indexing.boxes, create_pool)
    check_same_regions(find_model_folder(model), images.store)
    fitted: FirstStage | DualEncoderStage | None = None
    if len(images) > stage.rerank and dual_encoder is not None:
        fitted = build_dual_encoder_stage(dual_encoder, images)
    elif len(images) > stage.rerank:
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


def describe_search(searcher: Searcher, result: SearchResult) -> list[str]:
    """How the images were searched, in one or two lines."""
    stage, count = searcher.stage, result.num_files
    lines = []
    if stage is not None:
        lines.append(
            f"first stage: {count:,} images in {result.first_stage_milliseconds:.1f} ms, {result.num_scored:,} images "
            f"kept"
        )
        lines.append(stage.describe_recall(searcher.rerank, count))
    elif count > searcher.rerank:
        lines.append(
            "without a first stage the model scores every image; fit one with --captions FILE --regions STORE, on "
            "captions of images whose regions are of the same kind"
        )
    lines.append(f"{result.num_scored:,} of {count:,} images scored in {result.seconds:.2f} s")
    if searcher.images.num_refused:
        lines.append(f"{searcher.images.num_refused:,} more cannot be read: {searcher.images.index / 'refused.jsonl'}")
    return lines
