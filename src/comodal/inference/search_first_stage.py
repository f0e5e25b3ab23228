"""The first stage of a search, kept in its index: two linear maps, the pictures' vectors, and what they are good for.

The maps (tasks/retrieval/first_stage.py) are fitted once, on captions of the training split. On the held-out captions
the rank of the right image is measured, so that the cost of the first stage is known for any number of images kept:
when K of N are, it is how often the right one of H held-out images is among the first K H / N.
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

from comodal.console import say
from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import matched, split_pairs
from comodal.data.output_folder import only_one
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.files import whole
from comodal.hardware import Compute
from comodal.inference.search_index import IndexedImages, writable
from comodal.inference.search_vectors import ImageVectors, read_vectors, write_vectors
from comodal.inference.vision_language import MAX_REGIONS, VisionLanguagePipeline
from comodal.models.checkpoint import WEIGHTS, checksum, model_folder, read_about, read_config
from comodal.tasks.retrieval.first_stage import (
    MOST_CAPTIONS,
    EncodingProjection,
    EncodingProjections,
    TwoStageSearch,
    fit,
)
from comodal.tasks.retrieval.gallery import Gallery, Pairs, check_fit, gallery_of, held_out_share
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.retrieval.retrieval_ranks import answers_to_texts, ranks_of
from comodal.text_files import parse_json

FORMAT = 2
MOST_HELD_OUT = 2_000  # captions, drawn by chance
AT_ONCE = 1024  # pictures whose prefixes are in memory
SEED = 0
SIDES = ("text", "image")
RANKS = "ranks"


class CaptionedRegions(NamedTuple):
    """A file of captions, and the region store of their images."""

    captions: Path
    regions: Path


@dataclass(frozen=True)
class FirstStageTraining:
    """What maps were fitted on.

    Args:
        captions: The file.
        regions: The store of its images.
        fitted: Captions of the training split.
        held_out: Images among which the held-out captions were searched.
    """

    captions: str
    regions: str
    fitted: int
    held_out: int


@dataclass(frozen=True)
class FirstStage:
    """Two maps into one space, and where pictures lie in it.

    Args:
        learnt: What the maps were fitted on.
        maps: Of texts and of images.
        ranks: Of the image of every held-out caption, counted from 0.
        hashes: Of the ids of pictures.
        vectors: Of the same pictures; in an index of which nothing is missing, those of the rows of its store.
    """

    learnt: FirstStageTraining
    maps: EncodingProjections
    ranks: Int64[Tensor, "held_out_captions"]
    hashes: Int64[Tensor, "rows"]
    vectors: Float32[Tensor, "rows dim"]

    def share(self, keep: int, pictures: int) -> int:
        """How many of the held-out images are as large a share as `keep` of the pictures."""
        return max(1, round(keep * self.learnt.held_out / pictures))

    def recall(self, keep: int, pictures: int) -> float | None:
        """How often the right picture is among those that are kept; None where no captions are held out."""
        if not len(self.ranks):
            return None
        return float((self.ranks < self.share(keep, pictures)).double().mean())

    @torch.inference_mode()
    def nearest(
        self, answerer: VisionLanguagePipeline, text: str, pictures: IndexedImages, keep: int, compute: Compute
    ) -> Int64[np.ndarray, "kept"]:
        """The places of the pictures that lie nearest to a text, the nearest first."""
        gallery = gallery_like(answerer, [(words_of(text), int(pictures.rows[0]))], pictures.store)
        summary = PairScorer(answerer.vilbert, gallery, compute=compute).summaries("texts", np.arange(1))
        near = (self.vectors @ self.maps.text(summary)[0]).numpy()[pictures.rows]
        return np.argsort(-near, kind="stable")[:keep]


def first_stage_of(
    answerer: VisionLanguagePipeline, pictures: IndexedImages, given: CaptionedRegions | None, compute: Compute
) -> FirstStage | None:
    """The first stage of an index, which is fitted or completed first; None where there are no captions to fit it on.

    Args:
        answerer: The model.
        pictures: What is searched.
        given: What to fit the maps on; by default what the index was fitted on, or what the run was trained on.
        compute: Where and in which precision.

    Raises:
        DataError: The captions or regions that are given cannot be read or do not fit, or the file is damaged.
    """
    path = pictures.index / f"first_stage-{mark_of(answerer)}.safetensors"
    stage = known_stage = read_stage(path)
    if given is not None and stage is not None and [*map(str, given)] != [stage.learnt.captions, stage.learnt.regions]:
        stage = None
    if stage is None:
        stage = fitted_on(answerer, given, compute) if given else fitted_on_training(answerer, compute)
    if stage is None:
        return None
    hashes = hashes_of(pictures.store)
    if not torch.equal(stage.hashes, hashes):
        rows = len(stage.hashes)
        there = rows if stage is known_stage and torch.equal(stage.hashes, hashes[:rows]) else 0
        stage = completed(stage, answerer, pictures.store, hashes, compute)
        with writable(pictures.index), only_one(pictures.index):
            write_stage(path, stage, there)
    return stage


def fitted_on_training(answerer: VisionLanguagePipeline, compute: Compute) -> FirstStage | None:
    """The maps by the captions and regions that the run was trained on, where they still are and are as they were."""
    parameters = read_about(answerer.folder).get("parameters")
    values = parameters if isinstance(parameters, dict) else {}
    captions, regions = values.get("captions"), values.get("data", values.get("regions"))
    if not (isinstance(captions, str) and isinstance(regions, str)):
        return None
    known = CaptionedRegions(Path(captions), Path(regions))
    if not (known.captions.exists() and known.regions.exists()):
        return None
    try:
        return fitted_on(answerer, known, compute)
    except DataError as error:
        say(f"the first stage cannot be fitted on what {answerer.folder} was trained on: {error}", stderr=True)
        return None


def fitted_on(answerer: VisionLanguagePipeline, known: CaptionedRegions, compute: Compute) -> FirstStage:
    """The maps by captions of the training split, measured on the others; no picture lies in their space yet.

    Raises:
        DataError: The captions or their regions cannot be read, do not fit the model, or are of one image alone.
    """
    store, rng = RegionStore(known.regions), np.random.default_rng(SEED)
    check_fit(answerer.folder, answerer.vilbert.config, store, answerer.words)
    pairs = matched(read_captions(known.captions), store.ids).pairs
    parts = split_pairs(pairs, store.ids, held_out_share(answerer.folder), 0.0)
    train, held_out = some(parts["train"], MOST_CAPTIONS, rng), parts["validation"] + parts["test"]
    if not train:
        raise DataError(f"{known.captions} has no captions of a training split, on which the first stage is fitted")
    say(
        f"fitting the first stage on {len(train):,} captions of {known.captions}: once for this index and model",
        stderr=True,
    )
    maps = fit(PairScorer(answerer.vilbert, gallery_like(answerer, train, store), compute=compute), SEED)
    ranks, images = np.zeros(0, np.int64), 0
    if held_out:
        gallery = gallery_like(answerer, some(held_out, MOST_HELD_OUT, rng), store)
        found = TwoStageSearch(PairScorer(answerer.vilbert, gallery, compute=compute), maps)
        ranks, images = ranks_of(found.texts @ found.images.T, answers_to_texts(gallery)), len(gallery.counts)
    learnt = FirstStageTraining(str(known.captions), str(known.regions), len(train), images)
    dim = maps.image.linear.out_features
    return FirstStage(learnt, maps, torch.from_numpy(ranks), torch.zeros(0, dtype=torch.int64), torch.zeros((0, dim)))


def completed(
    stage: FirstStage,
    answerer: VisionLanguagePipeline,
    store: RegionStore,
    hashes: Int64[Tensor, "rows"],
    compute: Compute,
) -> FirstStage:
    """The stage with a vector for each row of a store: those that it has, and others made of the store's regions."""
    _, rows, old = np.intersect1d(hashes.numpy(), stage.hashes.numpy(), return_indices=True)
    vectors = torch.empty((len(store), stage.vectors.shape[1]))
    vectors[rows] = stage.vectors[old]
    missing = np.setdiff1d(np.arange(len(store)), rows)
    with torch.inference_mode():
        for part in np.split(missing, range(AT_ONCE, len(missing), AT_ONCE)):
            gallery = gallery_like(answerer, [(words_of(""), row) for row in part.tolist()], store)
            scorer = PairScorer(answerer.vilbert, gallery, compute=compute)
            vectors[part] = stage.maps.image(scorer.summaries("images", np.arange(len(part))))
    return FirstStage(stage.learnt, stage.maps, stage.ranks, hashes, vectors)


def gallery_like(answerer: VisionLanguagePipeline, pairs: Pairs, store: RegionStore) -> Gallery:
    """Texts and images as `comodal align` reads them."""
    return gallery_of(pairs, store, answerer.words, answerer.vilbert.config, MAX_REGIONS)


def words_of(text: str) -> Caption:
    """A text that is in no file."""
    return Caption(("",), text, None, "")


def some(pairs: Pairs, most: int, rng: np.random.Generator) -> Pairs:
    """Some of them, drawn by chance."""
    return [pairs[i] for i in rng.permutation(len(pairs))[:most].tolist()]


def hashes_of(store: RegionStore) -> Int64[Tensor, "rows"]:
    """Of the id of each row."""
    hashes = np.empty(len(store), np.int64)
    hashes[store.ids.order.astype(np.int64)] = store.ids.hashes.view(np.int64)
    return torch.from_numpy(hashes)


def mark_of(answerer: VisionLanguagePipeline) -> str:
    """Of all that vectors depend on: weights, sizes, vocabulary and the way in which regions are read."""
    folder = model_folder(answerer.folder)
    with safe_open(folder / WEIGHTS, framework="pt") as file:  # read, and checked against this sum, before
        weights = (file.metadata() or {}).get("crc32")
    sizes = read_config(folder).get("config")
    parts = json.dumps([FORMAT, MAX_REGIONS, weights, sizes, answerer.words.as_json().decode()], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def write_stage(path: Path, stage: FirstStage, there: int) -> None:
    """The maps as one file, and the vectors, of which the first `there` are written already."""
    manifest, found = path.with_suffix(".json"), ImageVectors(stage.hashes, stage.vectors)
    if there:
        write_vectors(manifest, found, there)
        return
    manifest.unlink(missing_ok=True)  # vectors of other maps do not count any more
    tensors = {RANKS: stage.ranks}
    for side, mapped in zip(SIDES, stage.maps, strict=True):
        tensors |= {f"{side}.{name}": tensor.contiguous() for name, tensor in mapped.state_dict().items()}
    about = {"learnt": json.dumps(asdict(stage.learnt)), "crc32": str(checksum(tensors))}
    with whole(path) as temporary:
        save_file(tensors, temporary, metadata=about)
    write_vectors(manifest, found, 0)


def read_stage(path: Path) -> FirstStage | None:
    """What `write_stage` wrote, or None where it has not.

    Raises:
        DataError: It is damaged.
    """
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            about = file.metadata() or {}
        if about.get("crc32") != str(checksum(tensors)):
            raise ValueError("checksum")
        learnt = FirstStageTraining(**parse_json(about["learnt"], path))
        maps = EncodingProjections(
            *(map_of({n: tensors[f"{side}.{n}"] for n in ("mean", "scale", "linear.weight")}) for side in SIDES)
        )
        ranks = tensors[RANKS]
    except (DataError, OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete it, and the next search makes it anew") from error
    found = read_vectors(path.with_suffix(".json"), maps.image.linear.out_features)
    return FirstStage(learnt, maps, ranks, found.hashes, found.vectors)


def map_of(state: dict[str, Tensor]) -> EncodingProjection:
    """A map that was fitted before."""
    found = EncodingProjection(torch.zeros((2, len(state["mean"]))))
    found.load_state_dict(state)
    return found.eval()
