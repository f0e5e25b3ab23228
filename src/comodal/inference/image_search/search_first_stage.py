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
from comodal.inference.image_search.search_index import IndexedImages, explain_write_errors
from comodal.inference.image_search.search_vectors import ImageVectors, read_vectors, write_vectors
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

FIRST_STAGE_FORMAT = 2
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
        fitted: Number of captions of the training split.
        held_out: Number of images among which the held-out captions were searched.
    """

    captions: str
    regions: str
    fitted: int
    held_out: int


@dataclass(frozen=True)
class FirstStage:
    """Two linear maps into a joint space, and the vectors of images in it.

    Args:
        learnt: The data that the maps were fitted on.
        maps: Of texts and of images.
        ranks: The rank of the correct image for every held-out caption, from 0.
        hashes: Of the ids of the images.
        vectors: Of the same images; in a complete index, in the order of the rows of its store.
    """

    learnt: FirstStageTraining
    maps: EncodingProjections
    ranks: Int64[Tensor, "held_out_captions"]
    hashes: Int64[Tensor, "rows"]
    vectors: Float32[Tensor, "rows dim"]

    def share(self, keep: int, pictures: int) -> int:
        """The number of held-out images that is the same fraction of them as `keep` is of the images."""
        return max(1, round(keep * self.learnt.held_out / pictures))

    def recall(self, keep: int, pictures: int) -> float | None:
        """The fraction of held-out captions whose image is kept; None without held-out captions."""
        if not len(self.ranks):
            return None
        return float((self.ranks < self.share(keep, pictures)).double().mean())

    @torch.inference_mode()
    def nearest(
        self, answerer: VisionLanguagePipeline, text: str, pictures: IndexedImages, keep: int, compute: Compute
    ) -> Int64[np.ndarray, "kept"]:
        """The indices of the images nearest to a text, the nearest first."""
        gallery = build_search_gallery(answerer, [(make_query_caption(text), int(pictures.rows[0]))], pictures.store)
        summary = PairScorer(answerer.vilbert, gallery, compute=compute).summaries("texts", np.arange(1))
        near = (self.vectors @ self.maps.text(summary)[0]).numpy()[pictures.rows]
        return np.argsort(-near, kind="stable")[:keep]


def build_first_stage(
    answerer: VisionLanguagePipeline, pictures: IndexedImages, given: CaptionedRegions | None, compute: Compute
) -> FirstStage | None:
    """The first stage of an index, which is fitted or completed first; None if there are no captions to fit it on.

    Args:
        answerer: The model.
        pictures: The indexed images.
        given: Data to fit the maps on; by default those of the index, or the run's training data.
        compute: Device and precision.

    Raises:
        DataError: The captions or regions cannot be read or do not match, or the file is damaged.
    """
    path = pictures.index / f"first_stage-{hash_encoding_settings(answerer)}.safetensors"
    stage = known_stage = read_first_stage(path)
    if given is not None and stage is not None and [*map(str, given)] != [stage.learnt.captions, stage.learnt.regions]:
        stage = None
    if stage is None:
        stage = fit_on_captions(answerer, given, compute) if given else fit_on_training_data(answerer, compute)
    if stage is None:
        return None
    hashes = hash_row_ids(pictures.store)
    if not torch.equal(stage.hashes, hashes):
        rows = len(stage.hashes)
        there = rows if stage is known_stage and torch.equal(stage.hashes, hashes[:rows]) else 0
        stage = add_missing_vectors(stage, answerer, pictures.store, hashes, compute)
        with explain_write_errors(pictures.index), lock_output_folder(pictures.index):
            write_first_stage(path, stage, there)
    return stage


def fit_on_training_data(answerer: VisionLanguagePipeline, compute: Compute) -> FirstStage | None:
    """Fits the maps on the captions and regions of the run's training data; None if they are missing or changed."""
    parameters = read_model_about(answerer.folder).get("parameters")
    values = parameters if isinstance(parameters, dict) else {}
    captions, regions = values.get("captions"), values.get("data", values.get("regions"))
    if not (isinstance(captions, str) and isinstance(regions, str)):
        return None
    known = CaptionedRegions(Path(captions), Path(regions))
    if not (known.captions.exists() and known.regions.exists()):
        return None
    try:
        return fit_on_captions(answerer, known, compute)
    except DataError as error:
        print_line(f"the first stage cannot be fitted on what {answerer.folder} was trained on: {error}", stderr=True)
        return None


def fit_on_captions(answerer: VisionLanguagePipeline, known: CaptionedRegions, compute: Compute) -> FirstStage:
    """Fits the maps on captions of the training split and evaluates them on the others; the stage has no image vectors
    yet.

    Raises:
        DataError: The captions or their regions cannot be read, do not fit the model, or are of a single image.
    """
    store, rng = RegionStore(known.regions), np.random.default_rng(FIT_SEED)
    check_model_inputs(answerer.folder, answerer.vilbert.config, store, answerer.words)
    pairs = match_captions(read_captions(known.captions), store.ids).pairs
    parts = split_matched_captions(pairs, store.ids, read_held_out_fraction(answerer.folder), 0.0)
    train, held_out = sample_pairs(parts["train"], MAX_CAPTIONS, rng), parts["validation"] + parts["test"]
    if not train:
        raise DataError(f"{known.captions} has no captions of a training split, on which the first stage is fitted")
    print_line(
        f"fitting the first stage on {len(train):,} captions of {known.captions}: once for this index and model",
        stderr=True,
    )
    maps = fit_projections(
        PairScorer(answerer.vilbert, build_search_gallery(answerer, train, store), compute=compute), FIT_SEED
    )
    ranks, images = np.zeros(0, np.int64), 0
    if held_out:
        gallery = build_search_gallery(answerer, sample_pairs(held_out, MAX_HELD_OUT, rng), store)
        found = TwoStageSearch(PairScorer(answerer.vilbert, gallery, compute=compute), maps)
        ranks, images = rank_answer_sets(found.texts @ found.images.T, list_text_answers(gallery)), len(gallery.counts)
    learnt = FirstStageTraining(str(known.captions), str(known.regions), len(train), images)
    dim = maps.image.linear.out_features
    return FirstStage(learnt, maps, torch.from_numpy(ranks), torch.zeros(0, dtype=torch.int64), torch.zeros((0, dim)))


def add_missing_vectors(
    stage: FirstStage,
    answerer: VisionLanguagePipeline,
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
            gallery = build_search_gallery(answerer, [(make_query_caption(""), row) for row in part.tolist()], store)
            scorer = PairScorer(answerer.vilbert, gallery, compute=compute)
            vectors[part] = stage.maps.image(scorer.summaries("images", np.arange(len(part))))
    return FirstStage(stage.learnt, stage.maps, stage.ranks, hashes, vectors)


def build_search_gallery(answerer: VisionLanguagePipeline, pairs: IndexedCaptions, store: RegionStore) -> Gallery:
    """Texts and images encoded as in `comodal align`."""
    return build_gallery(pairs, store, answerer.words, answerer.vilbert.config, MAX_INPUT_REGIONS)


def make_query_caption(text: str) -> Caption:
    """A caption for a text that is in no file."""
    return Caption(("",), text, None, "")


def sample_pairs(pairs: IndexedCaptions, most: int, rng: np.random.Generator) -> IndexedCaptions:
    """A random sample of the pairs."""
    return [pairs[i] for i in rng.permutation(len(pairs))[:most].tolist()]


def hash_row_ids(store: RegionStore) -> Int64[Tensor, "rows"]:
    """Hashes of the ids of all rows."""
    hashes = np.empty(len(store), np.int64)
    hashes[store.ids.order.astype(np.int64)] = store.ids.hashes.view(np.int64)
    return torch.from_numpy(hashes)


def hash_encoding_settings(answerer: VisionLanguagePipeline) -> str:
    """A hash of everything that vectors depend on: weights, sizes, vocabulary and the kind of regions."""
    folder = find_model_folder(answerer.folder)
    with safe_open(folder / MODEL_WEIGHTS_FILE, framework="pt") as file:  # read, and checked against this sum, before
        weights = (file.metadata() or {}).get("crc32")
    sizes = read_model_config(folder).get("config")
    parts = json.dumps(
        [FIRST_STAGE_FORMAT, MAX_INPUT_REGIONS, weights, sizes, answerer.words.as_json().decode()], sort_keys=True
    )
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def write_first_stage(path: Path, stage: FirstStage, there: int) -> None:
    """Writes the maps as one file, and the vectors, the first `there` of which are already written."""
    manifest, found = path.with_suffix(".json"), ImageVectors(stage.hashes, stage.vectors)
    if there:
        write_vectors(manifest, found, there)
        return
    manifest.unlink(missing_ok=True)  # vectors of other maps are invalid
    tensors = {RANKS_KEY: stage.ranks}
    for side, mapped in zip(ENCODING_SIDES, stage.maps, strict=True):
        tensors |= {f"{side}.{name}": tensor.contiguous() for name, tensor in mapped.state_dict().items()}
    about = {"learnt": json.dumps(asdict(stage.learnt)), "crc32": str(compute_weights_checksum(tensors))}
    with write_atomically(path) as temporary:
        save_file(tensors, temporary, metadata=about)
    write_vectors(manifest, found, 0)


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
        learnt = FirstStageTraining(**parse_json(about["learnt"], path))
        maps = EncodingProjections(
            *(
                load_projection({n: tensors[f"{side}.{n}"] for n in ("mean", "scale", "linear.weight")})
                for side in ENCODING_SIDES
            )
        )
        ranks = tensors[RANKS_KEY]
    except (DataError, OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it, and the next search makes it anew") from error
    found = read_vectors(path.with_suffix(".json"), maps.image.linear.out_features)
    return FirstStage(learnt, maps, ranks, found.hashes, found.vectors)


def load_projection(state: dict[str, Tensor]) -> EncodingProjection:
    """A map that was fitted before."""
    found = EncodingProjection(torch.zeros((2, len(state["mean"]))))
    found.load_state_dict(state)
    return found.eval()
