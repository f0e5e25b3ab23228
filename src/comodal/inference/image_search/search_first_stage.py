"""The first stage of a search, stored in its index: two linear maps, the vectors of the images, and the measured
recall.

The maps (tasks/retrieval/first_stage.py) are fitted once, on captions of the training split. The ranks of the correct
images are measured on held-out captions, so that the recall of the first stage is known for any number of images. For
K of N images it is the fraction of held-out captions whose image is among the first K H / N of H held-out images.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from comodal.console import print_line
from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.output_folder import lock_output_folder
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.files import write_atomically
from comodal.hardware import Compute
from comodal.inference.embedding_search.appended_rows import append_rows, explain_write_errors, read_appended_rows
from comodal.inference.image_search.search_index import IndexedImages
from comodal.inference.vision_language import MAX_INPUT_REGIONS, VisionLanguagePipeline
from comodal.models.checkpoint import (
    MODEL_WEIGHTS_FILE,
    compute_weights_checksum,
    find_model_folder,
    read_model_about,
    read_model_config,
)
from comodal.tasks.retrieval.first_stage import (
    MAX_CAPTIONS,
    EncodingProjection,
    EncodingProjections,
    TwoStageSearch,
    fit_projections,
)
from comodal.tasks.retrieval.gallery import (
    Gallery,
    IndexedCaptions,
    build_gallery,
    check_model_inputs,
    read_held_out_fraction,
)
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.retrieval.retrieval_ranks import list_text_answers, rank_answer_sets
from comodal.text_files import parse_json

FIRST_STAGE_FORMAT = 3
MAX_HELD_OUT = 2_000  # captions, drawn at random
IMAGES_PER_PART = 1024  # images whose unimodal encodings are in memory
FIT_SEED = 0
ENCODING_SIDES = ("text", "image")
RANKS_KEY = "ranks"


class CaptionedRegions(NamedTuple):
    """A file of captions, and the region store of their images."""

    captions: Path
    regions: Path


@dataclass(frozen=True)
class FirstStageTraining:
    """The data that the maps were fitted on.

    Args:
        captions: The file.
        regions: The store of its images.
        num_fitted: Number of captions of the training split.
        num_held_out: Number of images among which the held-out captions were searched.
    """

    captions: str
    regions: str
    num_fitted: int
    num_held_out: int


@dataclass(frozen=True)
class FirstStage:
    """Two linear maps into a joint space, and the vectors of images in it.

    Args:
        training: The data that the maps were fitted on.
        maps: Of texts and of images.
        ranks: The rank of the correct image for every held-out caption, from 0.
        hashes: Of the ids of the images.
        vectors: Of the same images; in a complete index, in the order of the rows of its store.
    """

    training: FirstStageTraining
    maps: EncodingProjections
    ranks: Int64[Tensor, "held_out_captions"]
    hashes: Int64[Tensor, "rows"]
    vectors: Float32[Tensor, "rows dim"]

    def count_held_out_kept(self, top_k: int, num_images: int) -> int:
        """The number of held-out images that is the same fraction of them as `top_k` is of the images."""
        return max(1, round(top_k * self.training.num_held_out / num_images))

    def describe_recall(self, top_k: int, num_images: int) -> str:
        """The measured recall, as a sentence."""
        recall = self.compute_recall(top_k, num_images)
        if recall is None:
            return "recall of the first stage: unknown, because there are no held-out captions"
        num_kept, num_held_out = self.count_held_out_kept(top_k, num_images), self.training.num_held_out
        return (
            f"measured on {len(self.ranks):,} held-out captions: recall of the first {num_kept:,} of "
            f"{num_held_out:,} images is {recall:.1%}"
        )

    def compute_recall(self, top_k: int, num_images: int) -> float | None:
        """The fraction of held-out captions whose image is among the first `top_k`; None without held-out captions."""
        if not len(self.ranks):
            return None
        return float((self.ranks < self.count_held_out_kept(top_k, num_images)).double().mean())

    @torch.inference_mode()
    def find_nearest(
        self, pipeline: VisionLanguagePipeline, text: str, images: IndexedImages, top_k: int, compute: Compute
    ) -> Int64[np.ndarray, "top_k"]:
        """The indices of the images nearest to a text, the nearest first."""
        gallery = build_search_gallery(pipeline, [(make_query_caption(text), int(images.rows[0]))], images.store)
        summary = PairScorer(pipeline.vilbert, gallery, compute=compute).compute_summaries("texts", np.arange(1))
        similarities = (self.vectors @ self.maps.text(summary)[0]).numpy()[images.rows]
        return np.argsort(-similarities, kind="stable")[:top_k]


def build_first_stage(
    pipeline: VisionLanguagePipeline,
    images: IndexedImages,
    captioned_regions: CaptionedRegions | None,
    compute: Compute,
) -> FirstStage | None:
    """The first stage of an index, which is fitted or completed first; None if there are no captions to fit it on.

    Args:
        pipeline: The model.
        images: The indexed images.
        captioned_regions: Data to fit the maps on; by default those of the index, or the run's training data.
        compute: Device and precision.

    Raises:
        DataError: The captions or regions cannot be read or do not match, or the file is damaged.
    """
    path = images.index / f"first_stage-{hash_encoding_settings(pipeline)}.safetensors"
    stage = stored_stage = read_first_stage(path)
    if (
        captioned_regions is not None
        and stage is not None
        and [*map(str, captioned_regions)] != [stage.training.captions, stage.training.regions]
    ):
        stage = None
    if stage is None:
        stage = (
            fit_on_captions(pipeline, captioned_regions, compute)
            if captioned_regions
            else fit_on_training_data(pipeline, compute)
        )
    if stage is None:
        return None
    hashes = hash_row_ids(images.store)
    if not torch.equal(stage.hashes, hashes):
        rows = len(stage.hashes)
        num_stored = rows if stage is stored_stage and torch.equal(stage.hashes, hashes[:rows]) else 0
        stage = add_missing_vectors(stage, pipeline, images.store, hashes, compute)
        with explain_write_errors(images.index), lock_output_folder(images.index):
            write_first_stage(path, stage, num_stored)
    return stage


def fit_on_training_data(pipeline: VisionLanguagePipeline, compute: Compute) -> FirstStage | None:
    """Fits the maps on the captions and regions of the run's training data; None if they are missing or changed."""
    parameters = read_model_about(pipeline.folder).get("parameters")
    values = parameters if isinstance(parameters, dict) else {}
    captions, regions = values.get("captions"), values.get("data", values.get("regions"))
    if not (isinstance(captions, str) and isinstance(regions, str)):
        return None
    captioned_regions = CaptionedRegions(Path(captions), Path(regions))
    if not (captioned_regions.captions.exists() and captioned_regions.regions.exists()):
        return None
    try:
        return fit_on_captions(pipeline, captioned_regions, compute)
    except DataError as error:
        print_line(f"the first stage does not fit the data of {pipeline.folder}: {error}", stderr=True)
        return None


def fit_on_captions(
    pipeline: VisionLanguagePipeline, captioned_regions: CaptionedRegions, compute: Compute
) -> FirstStage:
    """Fits the maps on captions of the training split and evaluates them on the others; the stage has no image vectors
    yet.

    Raises:
        DataError: The captions or their regions cannot be read, do not fit the model, or are of a single image.
    """
    store, rng = RegionStore(captioned_regions.regions), np.random.default_rng(FIT_SEED)
    check_model_inputs(pipeline.folder, pipeline.vilbert.config, store, pipeline.tokenizer)
    pairs = match_captions(read_captions(captioned_regions.captions), store.ids).pairs
    parts = split_matched_captions(pairs, store.ids, read_held_out_fraction(pipeline.folder), 0.0)
    train_pairs, held_out_pairs = sample_pairs(parts["train"], MAX_CAPTIONS, rng), parts["validation"] + parts["test"]
    if not train_pairs:
        raise DataError(f"{captioned_regions.captions} has no captions of a training split to fit the first stage on")
    print_line(
        f"fitting the first stage on {len(train_pairs):,} captions of {captioned_regions.captions} (once for this "
        f"index and model)",
        stderr=True,
    )
    maps = fit_projections(
        PairScorer(pipeline.vilbert, build_search_gallery(pipeline, train_pairs, store), compute=compute), FIT_SEED
    )
    ranks, num_images = np.zeros(0, np.int64), 0
    if held_out_pairs:
        gallery = build_search_gallery(pipeline, sample_pairs(held_out_pairs, MAX_HELD_OUT, rng), store)
        search = TwoStageSearch(PairScorer(pipeline.vilbert, gallery, compute=compute), maps)
        ranks, num_images = (
            rank_answer_sets(search.texts @ search.images.T, list_text_answers(gallery)),
            len(gallery.counts),
        )
    training = FirstStageTraining(
        str(captioned_regions.captions), str(captioned_regions.regions), len(train_pairs), num_images
    )
    dim = maps.image.linear.out_features
    return FirstStage(training, maps, torch.from_numpy(ranks), torch.zeros(0, dtype=torch.int64), torch.zeros((0, dim)))


def add_missing_vectors(
    stage: FirstStage,
    pipeline: VisionLanguagePipeline,
    store: RegionStore,
    hashes: Int64[Tensor, "rows"],
    compute: Compute,
) -> FirstStage:
    """The stage with a vector for each row of a store: existing vectors, and new ones from the store's regions."""
    _, rows, old = np.intersect1d(hashes.numpy(), stage.hashes.numpy(), return_indices=True)
    vectors = torch.empty((len(store), stage.vectors.shape[1]))
    vectors[rows] = stage.vectors[old]
    missing = np.setdiff1d(np.arange(len(store)), rows)
    with torch.inference_mode():
        for part in np.split(missing, range(IMAGES_PER_PART, len(missing), IMAGES_PER_PART)):
            gallery = build_search_gallery(pipeline, [(make_query_caption(""), row) for row in part.tolist()], store)
            scorer = PairScorer(pipeline.vilbert, gallery, compute=compute)
            vectors[part] = stage.maps.image(scorer.compute_summaries("images", np.arange(len(part))))
    return FirstStage(stage.training, stage.maps, stage.ranks, hashes, vectors)


def build_search_gallery(pipeline: VisionLanguagePipeline, pairs: IndexedCaptions, store: RegionStore) -> Gallery:
    """Texts and images encoded as in `comodal align`."""
    return build_gallery(pairs, store, pipeline.tokenizer, pipeline.vilbert.config, MAX_INPUT_REGIONS)


def make_query_caption(text: str) -> Caption:
    """A caption for a text that is in no file."""
    return Caption(("",), text, None, "")


def sample_pairs(pairs: IndexedCaptions, max_pairs: int, rng: np.random.Generator) -> IndexedCaptions:
    """A random sample of the pairs."""
    return [pairs[i] for i in rng.permutation(len(pairs))[:max_pairs].tolist()]


def hash_row_ids(store: RegionStore) -> Int64[Tensor, "rows"]:
    """Hashes of the ids of all rows."""
    hashes = np.empty(len(store), np.int64)
    hashes[store.ids.order.astype(np.int64)] = store.ids.hashes.view(np.int64)
    return torch.from_numpy(hashes)


def hash_encoding_settings(pipeline: VisionLanguagePipeline) -> str:
    """A hash of everything that vectors depend on: weights, sizes, vocabulary and the kind of regions."""
    folder = find_model_folder(pipeline.folder)
    with safe_open(folder / MODEL_WEIGHTS_FILE, framework="pt") as file:  # read, and checked against this sum, before
        weights = (file.metadata() or {}).get("crc32")
    sizes = read_model_config(folder).get("config")
    parts = json.dumps(
        [FIRST_STAGE_FORMAT, MAX_INPUT_REGIONS, weights, sizes, pipeline.tokenizer.to_json().decode()], sort_keys=True
    )
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def write_first_stage(path: Path, stage: FirstStage, num_stored: int) -> None:
    """Writes the maps as one file, and the vectors, the first `num_stored` of which are already written."""
    manifest, rows = path.with_suffix(".json"), np.empty(len(stage.hashes) - num_stored, make_row_dtype(stage.maps))
    rows["hash"], rows["vector"] = stage.hashes[num_stored:].numpy(), stage.vectors[num_stored:].numpy()
    if num_stored:
        append_rows(manifest, rows, num_stored)
        return
    manifest.unlink(missing_ok=True)  # vectors of other maps are invalid
    tensors = {RANKS_KEY: stage.ranks}
    for side, mapped in zip(ENCODING_SIDES, stage.maps, strict=True):
        tensors |= {f"{side}.{name}": tensor.contiguous() for name, tensor in mapped.state_dict().items()}
    about = {"training": json.dumps(asdict(stage.training)), "crc32": str(compute_weights_checksum(tensors))}
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata=about)
    append_rows(manifest, rows, 0)


def read_first_stage(path: Path) -> FirstStage | None:
    """Reads what `write_first_stage` wrote, or returns None if there is none.

    Raises:
        DataError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            about = file.metadata() or {}
        if about.get("crc32") != str(compute_weights_checksum(tensors)):
            raise ValueError("checksum")
        training = FirstStageTraining(**parse_json(about["training"], path))
        maps = EncodingProjections(
            *(
                load_projection({n: tensors[f"{side}.{n}"] for n in ("mean", "scale", "linear.weight")})
                for side in ENCODING_SIDES
            )
        )
        ranks = tensors[RANKS_KEY]
    except (DataError, OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it; the next search builds it again") from error
    rows = read_appended_rows(path.with_suffix(".json"), make_row_dtype(maps))
    vectors = torch.from_numpy(np.ascontiguousarray(rows["vector"]).reshape(len(rows), -1))
    return FirstStage(training, maps, ranks, torch.from_numpy(rows["hash"].copy()), vectors)


def make_row_dtype(maps: EncodingProjections) -> np.dtype:
    """A row of the vectors: the hash of an image's id, and its vector."""
    return np.dtype([("hash", "<i8"), ("vector", "<f4", (maps.image.linear.out_features,))])


def load_projection(state: dict[str, Tensor]) -> EncodingProjection:
    """A map that was fitted before."""
    projection = EncodingProjection(torch.zeros((2, len(state["mean"]))))
    projection.load_state_dict(state)
    return projection.eval()
