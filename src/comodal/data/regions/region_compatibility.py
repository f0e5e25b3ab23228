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
BOX_SETTING_KEYS = ("boxes", "grid", "most")


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
    made = read_json_object(path, CheckpointError).get("made_from")
    if not isinstance(made, dict):
        raise CheckpointError(f"{path}: made_from is {made!r}, not an object")
    return made


def check_same_regions(model: Path, store: RegionStore) -> None:
    """Refuse features that the model was not trained on; log a warning if that is unknown.

    Args:
        model: The model's own folder, with its config.json.
        store: The store that the model is to read.

    Raises:
        DataError: The store's features are of other weights or settings, and the store does not allow this model.
        CheckpointError: regions.json is damaged.
    """
    learnt, made = read_training_regions(model), store.about["made_from"]
    if learnt is None or learnt == made:
        return
    known, found = learnt.get("fingerprint"), made.get("fingerprint")
    if known is None or found is None:
        log_warning(
            f"{model} was trained on regions of {describe_regions(learnt)}, "
            f"{store.folder} has those of {describe_regions(made)}: "
            "whether they are of the same kind cannot be told"
        )
    elif known != found and known not in store.about.get("also_for", []):
        raise DataError(
            f"{store.folder} has features of {describe_regions(made)} "
            f"and {model} was trained on {describe_regions(learnt)}: "
            f"`comodal extract IMAGES STORE --like {model}` makes such; whoever knows that these will do, "
            f"extracts them with --also-for {model}"
        )
    elif known == found and any(learnt.get(name) != made.get(name) for name in BOX_SETTING_KEYS):
        log_warning(
            f"{store.folder} has other boxes than {model} was trained on: "
            f"{describe_box_source(made)}, not {describe_box_source(learnt)}"
        )


def allow_incompatible_regions(store: Path, model: Path) -> None:
    """Record in a store that a model may read it, although its features are of other weights or settings.

    Raises:
        DataError: The model does not say which regions it was trained on.
    """
    known = (read_training_regions(model) or {}).get("fingerprint")
    if known is None:
        raise DataError(f"{model} does not say of what regions it has learnt, so it reads any of the right size")
    about = read_store_about(store)
    write_store_about(store, about | {"also_for": sorted({*about.get("also_for", []), known})})


def describe_regions(made: dict[str, Any]) -> str:
    """The origin of regions, in a few words."""
    if "fingerprint" not in made:
        return " ".join(str(made[name]) for name in ("layout", "source") if name in made) or "an unknown kind"
    shown = {name: made[name] for name in ("size", "cells", "maps") if made.get(name)}
    settings = ", ".join(f"{name} {value}" for name, value in shown.items())
    return f"{made.get('name', 'a network')} ({settings}; {made['fingerprint']})"


def describe_box_source(made: dict[str, Any]) -> str:
    """The source of the boxes, in a few words."""
    number = {"grid": "grid", "own": "most", "selective": "most"}.get(str(made.get("boxes")))
    return f"{made.get('boxes')} {made.get(number) if number else ''}".strip()


def log_warning(sentence: str) -> None:
    """Log a warning once for all processes."""
    if distributed.is_main_process():
        print_line(sentence, stderr=True)
