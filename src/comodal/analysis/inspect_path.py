"""`comodal inspect`: identifies shards, runs, models, checkpoints, embeddings, synthetic data, scores and media."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from comodal.analysis.contact_sheet import draw_contact_sheet
from comodal.console import Table, print_line
from comodal.data.numpy_files import read_npz
from comodal.data.regions.region_store import RegionStore
from comodal.data.shards.shard_report import describe_shards
from comodal.data.sources.split_names import SPLITS
from comodal.errors import DataError, MediaError, RecipeError
from comodal.media.image import read_image
from comodal.media.storage.suffixes import IMAGE_SUFFIXES
from comodal.media.video import read_video_info
from comodal.models.checkpoint import (
    MODEL_CONFIG_FILE,
    find_model_folder,
    load_model,
    read_model_config,
    refuse_packed_run,
)
from comodal.text_files import read_json_object, read_metrics, read_yaml

Description = dict[str, Any]


@dataclass(frozen=True)
class PathDescription:
    """What a file or folder is.

    Args:
        path: The file or folder.
        kind: shards, regions, run, model, checkpoint, embeddings, synthetic, scores, image, audio or video.
        properties: Counts, sizes, settings, parameters and metrics; which ones depends on the kind.
    """

    path: Path
    kind: str
    properties: Mapping[str, Any]


def inspect(path: Path, contact_sheet: Path | None = None) -> PathDescription:
    """Identifies and describes a path: shards, run, model, checkpoint, embeddings, synthetic data, scores or media.

    Args:
        path: a file or folder.
        contact_sheet: for shards: an image file (.png or .jpg) to write, with frames and audio of some clips.

    Returns:
        The kind and the properties of the path.

    Raises:
        DataError: the path does not exist, or is of an unknown kind.

    Examples:
        comodal inspect shards/
        comodal inspect shards/ --contact-sheet clips.png
        comodal inspect runs/first
        comodal inspect vectors/street.npz
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not path.is_dir() and not path.is_file():
        raise DataError(f"{path}: neither a regular file nor a folder")
    refuse_packed_run(path)
    properties = describe_folder(path) if path.is_dir() else describe_file(path)
    description = PathDescription(path, properties.pop("kind"), properties)
    print_description(description)
    if contact_sheet is not None:
        splits = [split for split in SPLITS if any((path / split).glob("*.index"))]
        draw_contact_sheet(path / splits[0] if splits else path, contact_sheet)
    return description


def describe_folder(path: Path) -> Description:
    """Describes a comodal folder, identified by the files that only its kind has."""
    about = read_json_object(path / "about.json") if (path / "about.json").is_file() else {}
    if about.get("kind") == "synthetic":
        return {**about, "files": count_files_by_suffix(path)}
    if about.get("kind") == "regions":
        return {**RegionStore(path).about, "bytes": sum(file.stat().st_size for file in path.glob("*.bin"))}
    if (path / "config.yaml").is_file() or (path / "metrics.jsonl").is_file():
        return describe_run(path)
    if (path / MODEL_CONFIG_FILE).is_file():
        return {"kind": "model", **describe_model(path)}
    if (path / "results.json").is_file():
        return {"kind": "scores", **read_json_object(path / "results.json")}
    if about or any(path.glob("*.index")) or any(path.glob("*/*.index")):
        return {**describe_shards(path), "kind": "shards"}
    suffix_counts = count_files_by_suffix(path)
    raise DataError(
        f"{path}: not shards, regions, run, model, scores or synthetic data; it has {suffix_counts or 'nothing'}"
    )


def describe_file(path: Path) -> Description:
    """Describes a comodal file or a media file."""
    readers: dict[str, Callable[[Path], Description]] = {
        ".npz": describe_embedding_file,
        ".tar": describe_tar_shard,
        ".index": describe_tar_shard,
        ".pt": describe_checkpoint,
        ".safetensors": lambda file: {"kind": "model", **describe_model(file.parent)},
    }
    if path.name == MODEL_CONFIG_FILE or path.suffix in readers:
        return readers.get(path.suffix, readers[".safetensors"])(path)
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width, _ = read_image(path).shape
        return {"kind": "image", "width": width, "height": height}
    return describe_media_file(path)


def describe_media_file(path: Path) -> Description:
    """Describes an audio file that soundfile can read, or else a video."""
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError:
        try:
            return {"kind": "video", **read_video_info(path)._asdict()}
        except MediaError as error:
            raise DataError(f"{path}: not a supported file ({error.reason}: {error.detail})") from error
    return {
        "kind": "audio",
        "seconds": info.duration,
        "sample_rate": info.samplerate,
        "channels": info.channels,
        "format": f"{info.format} {info.subtype}",
    }


def describe_run(path: Path) -> Description:
    """Settings, steps done, the latest metrics of each split, and the model if there is one."""
    settings = read_yaml(path / "config.yaml", RecipeError) if (path / "config.yaml").is_file() else {}
    last: dict[str, dict] = {}
    best = 0.0
    for line in read_metrics(path / "metrics.jsonl"):
        last[line["split"]] = line
        best = max(best, line.get("accuracy", 0.0)) if line["split"] == "validation" else best
    checkpoints = sorted(file.name for file in (path / "checkpoints").glob("[0-9]*"))
    description: Description = {"kind": "run", "settings": settings, **last, "checkpoints": checkpoints}
    if "validation" in last:
        description["best_validation_accuracy"] = best
    if (path / "model" / MODEL_CONFIG_FILE).is_file():
        model = describe_model(path / "model")
        description["model"] = {name: model[name] for name in ("class", "config", "parameters", "parameters_of")}
    return description


def describe_model(path: Path) -> Description:
    """Class, configuration, origin and parameters. The weights are read and verified."""
    config_values = read_model_config(find_model_folder(path))
    model = load_model(path)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    return {
        **config_values,
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_of": {name: count for name, count in parts.items() if count},
    }


def describe_embedding_file(path: Path) -> Description:
    """Shape, timestamps and statistics of an embedding."""
    arrays = read_npz(path)
    missing = {"embedding", "timestamps"} - set(arrays)
    if missing:
        raise DataError(f"{path}: no {sorted(missing)[0]!r}, only {', '.join(arrays) or 'nothing'}")
    embedding, timestamps = arrays["embedding"], arrays["timestamps"]
    if embedding.ndim != 2 or not embedding.size or timestamps.shape != embedding.shape[:1]:
        raise DataError(f"{path}: vectors of the shape {embedding.shape} and timestamps of {timestamps.shape}")
    if embedding.dtype.kind != "f" or timestamps.dtype.kind not in "fiu":
        raise DataError(f"{path}: vectors are {embedding.dtype} and timestamps {timestamps.dtype}, not numbers")
    return {
        "kind": "embeddings",
        "vectors": len(embedding),
        "features": embedding.shape[-1],
        "first_seconds": float(timestamps[0]),
        "last_seconds": float(timestamps[-1]),
        "mean_norm": float(np.linalg.norm(embedding, axis=-1).mean()),
        "zeros": float((embedding == 0).mean()),
        "not_finite": int((~np.isfinite(embedding)).sum()),
    }


def describe_tar_shard(path: Path) -> Description:
    """Describes the folder of a shard."""
    return {**describe_shards(path.parent), "kind": "shards"}


def describe_checkpoint(path: Path) -> Description:
    """Describes a checkpoint by the folder of its run."""
    run = describe_run(path.parent.parent)
    return {**run, "kind": "checkpoint", "bytes": path.stat().st_size, "run": str(path.parent.parent)}


def count_files_by_suffix(path: Path) -> dict[str, int]:
    """The number of files of each suffix in a folder."""
    counts: dict[str, int] = {}
    for file in path.rglob("*"):
        if file.is_file() and not file.name.startswith("."):
            counts[file.suffix or file.name] = counts.get(file.suffix or file.name, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: -pair[1]))


def print_description(description: PathDescription) -> None:
    """Prints names and values, one per line, with dotted names for nested values."""
    table = Table("", "", header=False)
    print_line(f"{description.path}: {description.kind}")
    for name, value in flatten_settings(description.properties, ""):
        table.add_row(name, value)
    table.show()


def flatten_settings(value: object, name: str) -> list[tuple[str, str]]:
    """The leaves of nested settings with their dotted names."""
    if isinstance(value, Mapping) and value:
        return [row for key, inner in value.items() for row in flatten_settings(inner, f"{name}.{key}".lstrip("."))]
    if isinstance(value, bool) or not isinstance(value, int | float):
        return [(name, str(value))]
    if isinstance(value, int):
        return [(name, f"{value:,}" if abs(value) >= 10_000 else str(value))]
    return [(name, f"{value:.4g}" if math.isfinite(value) else str(value))]
