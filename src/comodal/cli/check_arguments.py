"""Checks the arguments of a command before its module is imported: files that must exist, and numbers within limits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comodal.cli.parser import Option
from comodal.errors import MAX_BATCH_SIZE, MAX_THREADS, MAX_WORKERS, DataError, check_number
from comodal.hub_download import is_hub_name, resolve_model_path
from comodal.media.storage.path_patterns import is_path_pattern
from comodal.registry import check_region_extractor

MAX_SEED = (1 << 63) - 1 - (1 << 32)  # of PyTorch's generator; some recipes add a little to the seed
MAX_COUNTS = {"batch_size": MAX_BATCH_SIZE, "threads": MAX_THREADS}
# Parameters of type Path that must exist; others may be written, or are read only sometimes.
INPUT_OPTIONS = {
    *("annotations", "answers", "apply", "audio", "bert", "boxes", "captions", "compatible_with", "data", "files"),
    *("first_stage", "folder", "gqa_answers", "ground_truth", "image", "images", "instances", "int8", "labels"),
    *("like", "lists", "model", "original_config", "other", "path", "questions", "references", "regions", "results"),
    *("run", "sentences", "source", "start_from", "store", "test", "test_images", "train_annotations", "train_data"),
    *("train_list", "train_regions", "validation", "validation_annotations", "validation_questions", "vocabulary"),
}
MODEL_OPTIONS = {"model", "start_from", "run"}  # may be OWNER/NAME on the Hugging Face hub
PATTERN_OPTIONS = {"source", "images", "audio", "captions"}  # inputs that may be several files: "{00000..00099}.tar"
BOX_SOURCES = ("own", "grid", "selective")  # of --boxes, besides a file
EXTRACTOR_OPTIONS = ("detector", "network")  # a path, or a name in the registry


def check_arguments(options: Sequence[Option], values: dict[str, Any]) -> None:
    """Reject files that do not exist, and numbers that no machine takes; replace names on the hub by downloaded
    folders.

    Raises:
        DataError: An input does not exist.
        CheckpointError: There is no such region extractor.
        ValueError: A seed, a batch size, or a number of threads or workers is out of range.
    """
    check_counts(options, values)
    for name in MODEL_OPTIONS & set(values):
        if isinstance(values[name], Path) and is_hub_name(values[name]):
            values[name] = resolve_model_path(values[name])
    for name in INPUT_OPTIONS & set(values):
        value = values[name]
        for path in value if isinstance(value, list) else [value]:
            is_file = isinstance(path, Path) or (name == "boxes" and path not in (None, *BOX_SOURCES))
            if is_file and not Path(path).exists() and not (name in PATTERN_OPTIONS and is_path_pattern(path)):
                raise DataError(f"{path} does not exist")
    for name in EXTRACTOR_OPTIONS:
        if values.get(name) is not None:
            check_region_extractor(values[name])


def check_counts(options: Sequence[Option], values: dict[str, Any]) -> None:
    """Raises ValueError if a seed, a batch size, or a number of threads or workers is out of range."""
    check_number("seed", values.get("seed", 0), 0, MAX_SEED)
    for name, largest in MAX_COUNTS.items():
        if isinstance(count := values.get(name), int):
            check_number(name, count, 1, largest)
    if isinstance(workers := values.get("workers"), int):
        default = next(option.default for option in options if option.name == "workers")
        if default == -1:
            if workers != -1:
                check_number("workers", workers, 1, MAX_WORKERS)
        else:  # the commands whose default is "auto" or 0 have a meaning for 0
            check_number("workers", workers, 0 if default in (0, "auto") else 1, MAX_WORKERS)
