"""`comodal extract`: extracts a region store from a folder of images.

Images are read and their regions extracted in parallel, on one machine or many. One process writes the store, in the
order of the names. The store is identical for any number of workers and after any interruption: each network computes
with one thread, because sums depend on the number of threads. Features that were extracted elsewhere are imported by
data/regions/convert_features.py.
"""

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import torch

from comodal.console import Table, print_line
from comodal.data.image_ids import make_image_id
from comodal.data.output_folder import lock_output_folder, translate_os_errors
from comodal.data.regions.region_appender import RegionAppender
from comodal.data.regions.region_compatibility import allow_incompatible_regions, read_training_regions
from comodal.data.regions.region_store import JOURNAL_FILE, FeatureType, Regions, RegionStore, RegionWriter
from comodal.data.regions.store_summary import EXTRACTION_REPORT_FILE, RegionStoreSummary, summarize_store
from comodal.data.sources.image_folder import find_image_root
from comodal.errors import CheckpointError, DataError, MediaError, run_batch_or_singly, wrap_item_errors
from comodal.files import encode_json_line, write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import DeviceName, choose_inference_batch_size, find_device
from comodal.media.image import read_image
from comodal.models.checkpoint import find_model_folder
from comodal.progress import track_progress
from comodal.regions.backbones import PooledRegions, ScaledImage
from comodal.regions.extractors import LoadedExtractor, load_extractor
from comodal.regions.image_list import (
    ImageList,
    ImageWithBoxes,
    RefusedImage,
    list_images,
    read_image_boxes,
)
from comodal.regions.region_extractor import BoxSource, ExtractorSource, RegionSettings
from comodal.regions.region_network import copy_network_to_store, load_extractor_for_model
from comodal.workers import CRASH_REASON, MAX_CRASHES, WorkerOptions, get_result_or_none, run_one_by_one, select_backend

IMAGES_PER_PROCESS = 32  # images that justify starting a process
MAX_SUSPECTS = 16  # images that are read one by one after a worker died: those that were in progress
IMAGES_PER_CALL = 256  # images per call of a backend that returns all results at the end
MISMATCHED_FEATURES = "features do not fit"
NAME_SETTINGS = ("detector", "boxes_from")  # names and paths, which may differ where the fingerprints are equal


class ExtractionResult(NamedTuple):
    """The regions of an image, or the reason why it was rejected."""

    image: str
    regions: Regions | None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Compatibility:
    """Models that will read a store.

    Args:
        like: A run or model: extract regions of the kind that it was trained on, by the network stored with it or at
            its original path. --detector gives its path if it was moved; the other settings are the model's.
        compatible_with: A run or model that may read the store although it was trained on another network's features.
    """

    like: Path | None = None
    compatible_with: Path | None = None


@dataclass(frozen=True)
class ExtractionWorkers(WorkerOptions):
    """The processes and the device that compute regions.

    Args:
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps. On a GPU this process computes alone.
    """

    device: DeviceName = "auto"


DEFAULT_SETTINGS, ANY_MODEL, ALL_CORES = RegionSettings(), Compatibility(), ExtractionWorkers()


@flatten_parameters
def extract_regions(
    images: Path,
    out: Path,
    detector: str | None = None,
    boxes: str | Path | None = None,
    settings: RegionSettings = DEFAULT_SETTINGS,
    dtype: FeatureType = "float16",
    models: Compatibility = ANY_MODEL,
    compute: ExtractionWorkers = ALL_CORES,
) -> RegionStoreSummary:
    """Extract a region store from a folder of images.

    An interrupted command continues when it is run again; the store does not depend on the number of workers. Images
    that cannot be read are listed with the reason in OUT/report.jsonl. The id of an image is its path relative to the
    folder, without the suffix; in a container, the container's path and the key (`00000.tar/000000123`).

    Args:
        images: A folder of images, of tar shards (WebDataset, img2dataset) or of Parquet or Arrow files (Hugging Face),
            one such file, or a pattern of files ("cc3m/{00000..00331}.tar").
        out: The store to make.
        detector: efficientnet_lite0 (ImageNet; extra `lite`), the folder of an L3-Net run, the file of a Faster R-CNN
            of torchvision (.pth), the folder of a Hugging Face DETR (extra `detr`), or a file of bottom-up attention's
            or 12-in-1's Visual Genome detector (.caffemodel, .bin, .pkl, .pth; docs/systems/detectors.md); or the name
            of an extractor of another package (`comodal list extractors`).
        boxes: own (a detector's; the default for detectors), grid (the default otherwise), selective (selective
            search; extra `selective`), or JSON Lines of `image` (a path relative to the folder) and `boxes` (left, top,
            right, bottom in pixels of the upright image).
        settings: Further settings of the extractor.
        dtype: Type of the stored features.
        models: Models that will read the store.
        compute: Processes and device.

    Returns:
        The number of images and regions, and of refused images by reason.

    Raises:
        DataError: There are no images, all are refused, OUT holds something else, or the disk is full.
        CheckpointError: There is no such network.

    Examples:
        comodal extract photos/ regions/ --detector efficientnet_lite0
        comodal extract photos/ regions/ --detector fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth --max-regions 100
        comodal extract photos/ regions/ --detector faster_rcnn.caffemodel --min-regions 10 --max-regions 100
        comodal extract photos/ regions/ --detector runs/l3net --boxes boxes.jsonl --cells 2 --maps all
        comodal extract cc3m/ regions/ --detector efficientnet_lite0
        comodal extract "data/train-*.parquet" regions/ --detector efficientnet_lite0
        comodal extract photos/ regions/ --like runs/vilbert
    """
    compute.check()
    file = None if boxes is None or str(boxes) in ("own", "grid", "selective") else Path(boxes)
    box_source: Any = "given" if file else boxes and str(boxes)
    if models.like is not None:
        extractor = load_extractor_of_model(models.like, detector, box_source, compute.device)
    elif detector is None:
        raise ValueError("--detector (the network) or --like (a model that will read the regions) is required")
    else:
        extractor = load_extractor(ExtractorSource(detector, box_source, **vars(settings)), compute.device)
    if extractor.source.boxes == "given" and file is None:
        raise ValueError(f"{models.like} was trained on given boxes: --boxes FILE is required")
    root = find_image_root(images)
    image_list = read_image_boxes(file, root) if file else list_images(images)
    with translate_os_errors(out), lock_output_folder(out), select_backend(compute.backend):
        fill_store(out, image_list, ExtractionPool(extractor, root, compute), dtype)
        copy_network_to_store(extractor, out)
        if models.compatible_with is not None:
            allow_incompatible_regions(out, find_model_folder(models.compatible_with))
    summary = summarize_store(RegionStore(out))
    print_summary(summary)
    summary.check()
    return summary


def load_extractor_of_model(model: Path, detector: str | None, boxes: BoxSource | None, device: str) -> LoadedExtractor:
    """The extractor of regions that a model can read.

    Raises:
        DataError: The model was trained on features from another source, or does not name their source.
    """
    provenance = read_training_regions(find_model_folder(model))
    if provenance is None:
        raise DataError(f"{model} does not record the regions it was trained on: choose a --detector")
    return load_extractor_for_model(model, provenance, detector, boxes, device)


@dataclass(frozen=True)
class ExtractionPool:
    """Extracts the regions of images in parallel, and returns them in the order of the images.

    Args:
        extractor: The extractor, loaded in this process.
        images: The folder of the images.
        compute: Processes and device.
    """

    extractor: LoadedExtractor
    images: Path
    compute: ExtractionWorkers

    def __call__(self, todo: Sequence[ImageWithBoxes]) -> Iterator[ExtractionResult]:
        device = find_device(self.compute.device)
        if device.type != "cpu" and isinstance(self.extractor.network, PooledRegions):
            yield from extract_batch_regions(
                todo, self.images, self.extractor, self.extractor.network, choose_inference_batch_size(device)
            )
            return
        processes = self.compute.workers if device.type == "cpu" else 1
        if self.compute.backend == "loky":
            processes = min(joblib.cpu_count() if processes == -1 else processes, -(-len(todo) // IMAGES_PER_PROCESS))
        if self.compute.backend == "sequential" or processes in (0, 1):
            with use_single_thread():
                yield from (extract_image_regions(image, self.images, self.extractor) for image in todo)
            return
        yield from self.extract_in_workers(todo, processes)

    def extract_in_workers(self, todo: Sequence[ImageWithBoxes], processes: int) -> Iterator[ExtractionResult]:
        """Extracts in worker processes. If one dies, the next images are read one by one; an image that ends a process
        by itself is rejected.

        Raises:
            DataError: Workers die for no single image, or for all images.
        """
        fingerprint = self.extractor.network.fingerprint
        work = partial(
            extract_in_worker,
            images=self.images,
            source=self.extractor.source,
            device=self.compute.device,
            fingerprint=fingerprint,
        )
        streams = joblib.parallel.get_active_backend()[0].supports_return_generator  # Ray returns all at the end
        done, failures = 0, 0
        while done < len(todo):
            pool = joblib.Parallel(n_jobs=processes, return_as="generator" if streams else "list")  # not used again
            part = todo[done:] if streams else todo[done : done + IMAGES_PER_CALL]
            try:
                for result in pool(joblib.delayed(work)(image) for image in part):
                    done += 1
                    yield result
            except BrokenProcessPool as error:
                suspects = todo[done : done + MAX_SUSPECTS]
                results = [get_result_or_none(future) for future in run_one_by_one(work, suspects)]
                failures = failures + 1 if None not in results else 0
                if failures == MAX_CRASHES or not any(results):
                    raise DataError(
                        f"a worker crashed, possibly because memory ran out, at {suspects[0].image} or soon after: "
                        "run the same command again to resume, with fewer workers"
                    ) from error
                done += len(suspects)
                yield from (
                    result or ExtractionResult(image.image, None, *CRASH_REASON)
                    for image, result in zip(suspects, results, strict=True)
                )


def extract_in_worker(
    image: ImageWithBoxes, images: Path, source: ExtractorSource, device: str, fingerprint: str
) -> ExtractionResult:
    """Extracts one image in a worker, which keeps its network from image to image."""
    return extract_image_regions(image, images, load_worker_extractor(source, device, fingerprint))


@functools.lru_cache(maxsize=1)
def load_worker_extractor(source: ExtractorSource, device: str, fingerprint: str) -> LoadedExtractor:
    """The network of a worker.

    Raises:
        CheckpointError: It is not the network that the command has loaded.
    """
    torch.set_num_threads(1)
    extractor = load_extractor(source, device)
    if extractor.network.fingerprint != fingerprint:
        raise CheckpointError(f"{source.detector} is not the same for all workers: it differs on a machine, or changed")
    return extractor


@contextmanager
def use_single_thread() -> Iterator[None]:
    """Limits PyTorch to one thread, as in the workers."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def extract_image_regions(image: ImageWithBoxes, images: Path, extractor: LoadedExtractor) -> ExtractionResult:
    """The regions of one image."""
    try:
        with wrap_item_errors(images / image.image):
            return make_extraction_result(image, extractor(read_image(images / image.image), image.boxes))
    except MediaError as error:
        return make_extraction_result(image, error)


def extract_batch_regions(
    todo: Sequence[ImageWithBoxes], images: Path, extractor: LoadedExtractor, network: PooledRegions, size: int
) -> Iterator[ExtractionResult]:
    """The regions of images on a GPU; batches of `size` images are read and scaled in parallel."""

    def scale_image(image: ImageWithBoxes) -> ScaledImage | MediaError:
        try:
            with wrap_item_errors(images / image.image):
                pixels = read_image(images / image.image)
                return network.scale_image(pixels, extractor.get_boxes(pixels, image.boxes))
        except MediaError as error:
            return error

    parallel = joblib.Parallel(n_jobs=-1, prefer="threads")
    for start in range(0, len(todo), size):
        part = todo[start : start + size]
        scaled_images = parallel(joblib.delayed(scale_image)(image) for image in part)
        scaled_by_path = {images / scaled.image: found for scaled, found in zip(part, scaled_images, strict=True)}
        good = {path: found for path, found in scaled_by_path.items() if isinstance(found, ScaledImage)}
        made = iter(run_batch_or_singly(network.extract_batch, [*good.values()], [*good]))
        for image, scaled in zip(part, scaled_images, strict=True):
            yield make_extraction_result(image, scaled if isinstance(scaled, MediaError) else next(made))


def make_extraction_result(image: ImageWithBoxes, made: Regions | MediaError) -> ExtractionResult:
    """The result of an image: its regions, or why it was rejected."""
    if isinstance(made, MediaError):
        return ExtractionResult(image.image, None, str(made.reason), made.detail)
    return ExtractionResult(image.image, made)


def fill_store(out: Path, image_list: ImageList, pool: ExtractionPool, dtype: FeatureType) -> None:
    """Adds the missing images to the store.

    Raises:
        DataError: OUT was made with other settings.
    """
    network, about = (
        pool.extractor.network,
        pool.extractor.about | {"images": image_list.compute_fingerprint(pool.images)},
    )
    if image_list.boxes_from is not None:
        about["boxes_from"] = image_list.boxes_from
    if not (out / "about.json").exists():
        with RegionWriter(out, network.feature_dim, network.num_classes, dtype, about) as writer:
            refused = list(image_list.refused)
            todo = [image for image in image_list.images if make_image_id(image.image) not in writer.written_ids]
            for result in track_extraction(pool(todo), len(image_list.images), len(todo)):
                if refusal := add_extraction_result(writer, result):
                    refused.append(refusal)
            write_bytes_atomically(
                out / EXTRACTION_REPORT_FILE, b"".join(encode_json_line(line._asdict()) for line in sorted(refused))
            )
    for path in (out / JOURNAL_FILE, *out.glob(".*.[0-9]*.part")):  # left by interrupted commands
        path.unlink(missing_ok=True)
    result = RegionStore(out).about["provenance"]
    changed = [
        f"{name} was {result.get(name)!r} and is {value!r}"
        for name, value in about.items()
        if result.get(name) != value and name not in NAME_SETTINGS
    ]
    if changed and [*result] == [*about]:
        raise DataError(f"{out} was created with other settings ({'; '.join(changed)}); use another folder")
    if changed:
        raise DataError(f"{out} was created from {result}; use another folder")


def add_extraction_result(
    writer: RegionWriter | RegionAppender, result: ExtractionResult, name: str | None = None
) -> RefusedImage | None:
    """Adds an image to the store, under its path without the suffix or another name, or returns why it was rejected."""
    if result.regions is None:
        return RefusedImage(result.image, result.reason, result.detail)
    features, boxes, classes, _, width, height = result.regions
    try:
        writer.add(name or make_image_id(result.image), features, boxes, width, height, classes)
    except ValueError as error:
        return RefusedImage(result.image, MISMATCHED_FEATURES, str(error))
    return None


def track_extraction(results: Iterator[ExtractionResult], total: int, todo: int) -> Iterator[ExtractionResult]:
    """Shows the progress and the remaining time."""
    yield from track_progress(results, "regions", total=total, completed=total - todo)


def print_summary(summary: RegionStoreSummary) -> None:
    """Prints the numbers of images and regions, and a table of the refused images."""
    counts = f"{summary.images:,} images, {summary.num_refused:,} refused, {summary.regions:,} regions"
    print_line(f"{summary.path}: {counts}")
    if summary.refused:
        table = Table("refused because", "images", right=[1])
        for reason, count in summary.refused.items():
            table.add_row(reason, f"{count:,}")
        table.show()
