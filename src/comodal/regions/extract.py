"""`comodal extract`: a folder of images in, a region store out.

Pictures are read and their regions made in parallel, on one machine or many; one process writes the store, in the order
of the names. So the store is the same to the last byte whatever the number of workers, and however often the command
was killed on its way: each network computes with one thread, for sums depend on how they are shared out. Features that
others have extracted come in through data/regions/convert_features.py.
"""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch

from comodal.console import Table, say
from comodal.data.output_folder import explained, only_one
from comodal.data.regions.region_appender import RegionAppender
from comodal.data.regions.region_compatibility import accept, learnt_from
from comodal.data.regions.region_store import JOURNAL, FeatureType, Regions, RegionStore, RegionWriter
from comodal.data.sources.image_folder import root_of
from comodal.errors import CheckpointError, DataError, MediaError, one_item
from comodal.files import json_line, write_whole
from comodal.hardware import DeviceName, find_device, inference_batch
from comodal.media.image import read_image
from comodal.models.checkpoint import model_folder
from comodal.progress import track
from comodal.regions.backbones import Maps, PooledRegions, ScaledImage
from comodal.regions.extractors import MOST, ExtractorSource, LoadedExtractor, Places, load_extractor
from comodal.regions.extractors_c4 import HeadTypes, RuleNames
from comodal.regions.image_list import ImageList, ImageWithBoxes, RefusedImage, id_of, images_of, read_boxes
from comodal.regions.region_network import extractor_for, keep_network
from comodal.text_files import read_json_lines
from comodal.workers import CRASHED, CRASHES, Backend, came_of, one_by_one, running_on

A_PROCESS = 32  # images that are worth the start of a process
SUSPECTS = 16  # images that are read one by one after a worker died: more than two processes have begun
AT_ONCE = 256  # images between two looks, where a backend gives its results only when it has all
DOES_NOT_FIT = "numbers that do not fit"
REPORT = "report.jsonl"
NAMES_ALONE = ("detector", "boxes_from")  # what they name is the same where the fingerprints are


class ExtractionResult(NamedTuple):
    """The regions of an image, or why there are none."""

    image: str
    regions: Regions | None
    reason: str = ""
    detail: str = ""


def extract_regions(
    images: Path,
    out: Path,
    detector: str | None = None,
    boxes: str | Path | None = None,
    grid: int = 6,
    cells: int = 1,
    size: int | None = None,
    dtype: FeatureType = "float16",
    most: int = MOST,
    fewest: int | None = None,
    rules: RuleNames | None = None,
    head: HeadTypes | None = None,
    maps: Maps | None = None,
    like: Path | None = None,
    also_for: Path | None = None,
    workers: int = -1,
    backend: Backend = "loky",
    device: DeviceName = "auto",
) -> dict[str, int]:
    """Make a region store of a folder of images.

    Killed and started again, the command goes on; the store does not depend on the number of workers. What cannot be
    read is refused, each with its reason, in OUT/report.jsonl. The id of an image is its path below the folder, without
    the suffix; in a container, the path of that and the key (`00000.tar/000000123`).

    Args:
        images: A folder of images, of tar shards (WebDataset, img2dataset) or of Parquet or Arrow files (Hugging Face),
            one such file, or a pattern of files ("cc3m/{00000..00331}.tar").
        out: The store to make.
        detector: efficientnet_lite0 (ImageNet; extra `lite`), the folder of an L3-Net run, the file of a Faster R-CNN
            of torchvision (.pth), the folder of a Hugging Face DETR (extra `detr`), or a file of bottom-up attention's
            or 12-in-1's Visual Genome detector (.caffemodel, .bin, .pkl, .pth; docs/detectors.md).
        boxes: own (a detector's; the default where there are any), grid (the default elsewhere), selective (selective
            search; extra `selective`), or JSON Lines of `image` (a path below the folder) and `boxes` (left, top,
            right, bottom in pixels of the image as it is seen, upright).
        grid: Rows and columns of the grid.
        cells: Of a vision network: a box is cut into so many rows and columns, whose features stand one behind the
            other.
        size: Short side of the images as the network sees them; by default its own.
        dtype: How features are kept.
        most: Own boxes and those of selective search: at most so many of an image.
        fewest: Of the Visual Genome detector: at least so many, and between the two those that are sure (10 and 100 in
            the published features of COCO); by default as many as at most.
        rules: Of the same: caffe (the default: the regions ViLBERT has learnt from) or lxmert (Hugging Face's).
        head: Of the same: precision of its last stage, fp32 (the default, as regions must not depend on the machine) or
            bf16, faster where the hardware computes it natively.
        maps: Of a vision network: last (the default), or all: those of earlier stages as well, which know colours and
            small things better.
        like: A run or model: make regions of the kind that it has learnt from, by the network beside it or where that
            lay then. --detector says where it lies if it was moved; the other settings are the model's.
        also_for: A run or model that may read the store although it has learnt from another network's features.
        workers: Processes; -1 is one per core.
        backend: Where they run: loky (this machine), ray or dask (many machines; extras), sequential (this process).
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps. On a GPU this process computes alone.

    Returns:
        images.taken, images.refused and regions.

    Raises:
        DataError: There are no images, OUT holds something else, or the disk is full.
        CheckpointError: There is no such network.

    Examples:
        comodal extract photos/ regions/ --detector efficientnet_lite0
        comodal extract photos/ regions/ --detector fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --most 100
        comodal extract photos/ regions/ --detector resnet101_faster_rcnn_final.caffemodel --fewest 10 --most 100
        comodal extract photos/ regions/ --detector runs/l3net --boxes boxes.jsonl --cells 2 --maps all
        comodal extract cc3m/ regions/ --detector efficientnet_lite0
        comodal extract "data/train-*.parquet" regions/ --detector efficientnet_lite0
        comodal extract photos/ regions/ --like runs/vilbert
    """
    if workers != -1 and workers < 1:
        raise ValueError(f"workers is a number of processes, or -1 for one per core; got {workers}")
    file = None if boxes is None or str(boxes) in ("own", "grid", "selective") else Path(boxes)
    places: Any = "given" if file else boxes and str(boxes)
    if like is not None:
        extractor = like_those_of(like, detector, places, device)
    elif detector is None:
        raise ValueError("--detector says what makes the features, or --like RUN which model they are for")
    else:
        source = ExtractorSource(detector, places, grid, cells, size, most, fewest, rules, head, maps)
        extractor = load_extractor(source, device)
    if extractor.source.boxes == "given" and file is None:
        raise ValueError(f"{like} has learnt from given boxes: --boxes FILE says where they are in these images")
    root = root_of(images)
    listed = read_boxes(file, root) if file else images_of(images)
    with explained(out), only_one(out), running_on(backend):
        fill_store(out, listed, ExtractionPool(extractor, root, device, workers, backend), dtype)
        keep_network(extractor, out)
        if also_for is not None:
            accept(out, model_folder(also_for))
    return report(out)


def like_those_of(model: Path, detector: str | None, boxes: Places | None, device: str) -> LoadedExtractor:
    """What makes regions that a model can read.

    Raises:
        DataError: The model has learnt from features that were made elsewhere, or does not say from which.
    """
    learnt = learnt_from(model_folder(model))
    if learnt is None:
        raise DataError(f"{model} does not say of what regions it has learnt: choose a --detector")
    return extractor_for(model, learnt, detector, boxes, device)


@dataclass(frozen=True)
class ExtractionPool:
    """Makes the regions of images in parallel, and gives them in the order of the images.

    Args:
        extractor: What makes them, as this process has loaded it.
        images: The folder of the images.
        device: Where the workers' networks compute; on a GPU this process does it alone.
        workers: Processes; -1 is one per core.
        backend: Where they run.
    """

    extractor: LoadedExtractor
    images: Path
    device: str
    workers: int
    backend: Backend

    def __call__(self, todo: Sequence[ImageWithBoxes]) -> Iterator[ExtractionResult]:
        device = find_device(self.device)
        if device.type != "cpu" and isinstance(self.extractor.network, PooledRegions):
            yield from make_together(todo, self.images, self.extractor, self.extractor.network, inference_batch(device))
            return
        processes = self.workers if device.type == "cpu" else 1
        if self.backend == "loky":
            processes = min(joblib.cpu_count() if processes == -1 else processes, -(-len(todo) // A_PROCESS))
        if self.backend == "sequential" or processes in (0, 1):
            with one_thread():
                yield from (make(image, self.images, self.extractor) for image in todo)
            return
        yield from self.in_workers(todo, processes)

    def in_workers(self, todo: Sequence[ImageWithBoxes], processes: int) -> Iterator[ExtractionResult]:
        """By worker processes. Where one dies, the next images are read one by one: what ends a process by itself is
        refused.

        Raises:
            DataError: Workers die without an image to blame, or with all of them.
        """
        fingerprint = self.extractor.network.fingerprint
        work = partial(
            make_there, images=self.images, source=self.extractor.source, device=self.device, fingerprint=fingerprint
        )
        streams = joblib.parallel.get_active_backend()[0].supports_return_generator  # Ray gives all at the end
        done, failures = 0, 0
        while done < len(todo):
            pool = joblib.Parallel(n_jobs=processes, return_as="generator" if streams else "list")  # not used again
            part = todo[done:] if streams else todo[done : done + AT_ONCE]
            try:
                for made in pool(joblib.delayed(work)(image) for image in part):
                    done += 1
                    yield made
            except BrokenProcessPool as error:
                suspects = todo[done : done + SUSPECTS]
                found = [came_of(future) for future in one_by_one(work, suspects)]
                failures = failures + 1 if None not in found else 0
                if failures == CRASHES or not any(found):
                    raise DataError(
                        f"a worker died, perhaps for want of memory, at {suspects[0].image} or soon after: "
                        "the same command goes on there; try fewer workers"
                    ) from error
                done += len(suspects)
                yield from (
                    made or ExtractionResult(image.image, None, *CRASHED)
                    for image, made in zip(suspects, found, strict=True)
                )


def make_there(
    image: ImageWithBoxes, images: Path, source: ExtractorSource, device: str, fingerprint: str
) -> ExtractionResult:
    """In a worker, which keeps its network from image to image."""
    return make(image, images, loaded(source, device, fingerprint))


@functools.lru_cache(maxsize=1)
def loaded(source: ExtractorSource, device: str, fingerprint: str) -> LoadedExtractor:
    """A worker's network.

    Raises:
        CheckpointError: It is not the one that the command has read.
    """
    torch.set_num_threads(1)
    extractor = load_extractor(source, device)
    if extractor.network.fingerprint != fingerprint:
        raise CheckpointError(f"{source.detector} is not the same for all workers: it differs on a machine, or changed")
    return extractor


@contextmanager
def one_thread() -> Iterator[None]:
    """As the workers compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def make(image: ImageWithBoxes, images: Path, extractor: LoadedExtractor) -> ExtractionResult:
    """The regions of one image."""
    try:
        with one_item(images / image.image):
            regions = extractor(read_image(images / image.image), image.boxes)
    except MediaError as error:
        return ExtractionResult(image.image, None, str(error.reason), error.detail)
    return ExtractionResult(image.image, regions)


def make_together(
    todo: Sequence[ImageWithBoxes], images: Path, extractor: LoadedExtractor, network: PooledRegions, size: int
) -> Iterator[ExtractionResult]:
    """The regions of images on a GPU: so many at once are read and scaled side by side and go through it together."""

    def scaled(image: ImageWithBoxes) -> ScaledImage | ExtractionResult:
        try:
            with one_item(images / image.image):
                picture = read_image(images / image.image)
                return network.scaled(picture, extractor.boxes_in(picture, image.boxes))
        except MediaError as error:
            return ExtractionResult(image.image, None, str(error.reason), error.detail)

    parallel = joblib.Parallel(n_jobs=-1, prefer="threads")
    for start in range(0, len(todo), size):
        part = todo[start : start + size]
        read = parallel(joblib.delayed(scaled)(image) for image in part)
        regions = iter(network.batch([one for one in read if isinstance(one, ScaledImage)]))
        for image, one in zip(part, read, strict=True):
            yield one if isinstance(one, ExtractionResult) else ExtractionResult(image.image, next(regions))


def fill_store(out: Path, listed: ImageList, pool: ExtractionPool, dtype: FeatureType) -> None:
    """Makes what is not there yet.

    Raises:
        DataError: OUT was made otherwise.
    """
    network, about = pool.extractor.network, pool.extractor.about | {"images": listed.fingerprint(pool.images)}
    if listed.boxes_from is not None:
        about["boxes_from"] = listed.boxes_from
    if not (out / "about.json").exists():
        with RegionWriter(out, network.feature_dim, network.num_classes, dtype, about) as writer:
            refused = list(listed.refused)
            todo = [image for image in listed.images if id_of(image.image) not in writer.known]
            for made in with_bar(pool(todo), len(listed.images), len(todo)):
                if found := add(writer, made):
                    refused.append(found)
            write_whole(out / REPORT, b"".join(json_line(line._asdict()) for line in sorted(refused)))
    for path in (out / JOURNAL, *out.glob(".*.[0-9]*.part")):  # what killed commands left
        path.unlink(missing_ok=True)
    made = RegionStore(out).about["made_from"]
    changed = [
        f"{name} was {made.get(name)!r} and is {value!r}"
        for name, value in about.items()
        if made.get(name) != value and name not in NAMES_ALONE
    ]
    if changed and [*made] == [*about]:
        raise DataError(f"{out} was made otherwise ({'; '.join(changed)}): give another folder")
    if changed:
        raise DataError(f"{out} was made otherwise, from {made}: give another folder")


def add(writer: RegionWriter | RegionAppender, made: ExtractionResult, name: str | None = None) -> RefusedImage | None:
    """Adds an image to the store, under its path without the suffix or another name, or says why not."""
    if made.regions is None:
        return RefusedImage(made.image, made.reason, made.detail)
    features, boxes, classes, _, width, height = made.regions
    try:
        writer.add(name or id_of(made.image), features, boxes, width, height, classes)
    except ValueError as error:
        return RefusedImage(made.image, DOES_NOT_FIT, str(error))
    return None


def with_bar(made: Iterator[ExtractionResult], total: int, todo: int) -> Iterator[ExtractionResult]:
    """How far, and how long yet."""
    yield from track(made, "regions", total=total, completed=total - todo)


def report(out: Path) -> dict[str, int]:
    """Counts what is in the store and what was refused, by reason."""
    store = RegionStore(out)
    try:
        reasons = Counter(line["reason"] for _, line in read_json_lines(out / REPORT))
    except (DataError, TypeError, KeyError) as error:
        raise DataError(f"{out / REPORT} is damaged ({error!r}): remove {out} and make it again") from error
    counts = {"images.taken": len(store), "images.refused": reasons.total(), "regions": int(store.firsts[-1])}
    say(f"{out}: " + ", ".join(f"{count:,} {name}" for name, count in counts.items()))
    if reasons:
        table = Table("refused because", "images", right=[1])
        for reason, count in reasons.most_common():
            table.add_row(reason, f"{count:,}")
        table.show()
    return counts
