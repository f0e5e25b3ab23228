"""Checks that a model can use the regions of a store: features of another network are meaningless to it.

Training writes the origin of its regions next to the model (regions.json, `RegionStore.described`); every store records
the same. The fingerprint covers the weights and all settings that change the features of a box. The boxes themselves
are not part of it: VCR and RefCOCO+ use the same network with other boxes.
"""

from pathlib import Path
from typing import Any

from comodal import distributed
from comodal.console import print_line
from comodal.data.regions.region_store import RegionStore, read_store_about, write_store_about
from comodal.errors import CheckpointError, DataError
from comodal.text_files import read_json_object

REGION_SETTINGS_FILE = "regions.json"
BOX_SETTING_KEYS = ("boxes", "grid", "max_regions")


def read_training_regions(model: Path) -> dict[str, Any] | None:
    """The origin of the regions that a model was trained on, or None if it is not recorded.

    Args:
        model: The model's own folder, with its config.json.

    Raises:
        CheckpointError: regions.json is damaged.
    """
    path = model / REGION_SETTINGS_FILE
    if not path.is_file():
        return None
    provenance = read_json_object(path, CheckpointError).get("provenance")
    if not isinstance(provenance, dict):
        raise CheckpointError(f"{path}: provenance is {provenance!r}, not an object")
    return provenance


def check_same_regions(model: Path, store: RegionStore) -> None:
    """Refuse features that the model was not trained on; log a warning if that is unknown.

    Args:
        model: The model's own folder, with its config.json.
        store: The store that the model is to read.

    Raises:
        DataError: The store's features are of other weights or settings, and the store does not allow this model.
        CheckpointError: regions.json is damaged.
    """
    training_provenance, store_provenance = read_training_regions(model), store.about["provenance"]
    if training_provenance is None or training_provenance == store_provenance:
        return
    training_fingerprint, store_fingerprint = (
        training_provenance.get("fingerprint"),
        store_provenance.get("fingerprint"),
    )
    if training_fingerprint is None or store_fingerprint is None:
        log_warning(
            f"{model} was trained on regions of {describe_regions(training_provenance)}, "
            f"{store.folder} has those of {describe_regions(store_provenance)}: "
            "whether they are of the same kind is unknown"
        )
    elif training_fingerprint not in (store_fingerprint, *store.about.get("compatible_with", [])):
        raise DataError(
            f"{store.folder} has features of {describe_regions(store_provenance)} "
            f"and {model} was trained on {describe_regions(training_provenance)}: "
            f"`comodal extract IMAGES STORE --like {model}` extracts the required kind; if these are suitable as well, "
            f"extract them with --compatible-with {model}"
        )
    elif training_fingerprint == store_fingerprint and any(
        training_provenance.get(name) != store_provenance.get(name) for name in BOX_SETTING_KEYS
    ):
        log_warning(
            f"{store.folder} has other boxes than {model} was trained on: "
            f"{describe_box_source(store_provenance)}, not {describe_box_source(training_provenance)}"
        )


def allow_incompatible_regions(store: Path, model: Path) -> None:
    """Record in a store that a model may read it, although its features are of other weights or settings.

    Raises:
        DataError: The model does not record which regions it was trained on.
    """
    fingerprint = (read_training_regions(model) or {}).get("fingerprint")
    if fingerprint is None:
        raise DataError(f"{model} does not record the regions it was trained on, so it accepts any of the right size")
    about = read_store_about(store)
    write_store_about(store, about | {"compatible_with": sorted({*about.get("compatible_with", []), fingerprint})})


def describe_regions(provenance: dict[str, Any]) -> str:
    """The origin of regions, in a few words."""
    if "fingerprint" not in provenance:
        return (
            " ".join(str(provenance[name]) for name in ("layout", "source") if name in provenance) or "an unknown kind"
        )
    shown = {name: provenance[name] for name in ("size", "cells", "maps") if provenance.get(name)}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"{provenance.get('name', 'a network')} ({settings}; {provenance['fingerprint']})"


def describe_box_source(provenance: dict[str, Any]) -> str:
    """The source of the boxes, in a few words."""
    setting = {"grid": "grid", "own": "max_regions", "selective": "max_regions"}.get(str(provenance.get("boxes")))
    return f"{provenance.get('boxes')} {provenance.get(setting) if setting else ''}".strip()


def log_warning(message: str) -> None:
    """Log a warning once for all processes."""
    if distributed.is_main_process():
        print_line(message, stderr=True)
