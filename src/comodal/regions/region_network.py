"""The network that extracted the regions: stored with them, and found again with the models trained on them.

Its fingerprint must always be that of the regions.
"""

import shutil
from pathlib import Path
from typing import Any

from comodal.data.regions.region_compatibility import describe_regions, read_training_regions
from comodal.errors import CheckpointError, DataError
from comodal.files import write_atomically
from comodal.models.checkpoint import MODEL_CONFIG_FILE, find_model_folder, read_model_config
from comodal.regions.backbones import LITE0
from comodal.regions.extractors import LoadedExtractor, Places, load_extractor_like
from comodal.tasks.vision_language.region_record import MODEL_NETWORK_FOLDER, NETWORK_FILES, STORE_NETWORK_FOLDER

MAX_NETWORK_BYTES = 200_000_000  # larger networks stay where they are


def copy_network_to_store(extractor: LoadedExtractor, store: Path) -> None:
    """Copies the network into the store of its regions, if it is a model folder of comodal and not too large.

    Raises:
        CheckpointError: The folder holds another network than when the regions were extracted.
    """
    path, kept = Path(extractor.source.detector), store / STORE_NETWORK_FOLDER
    if extractor.source.detector == LITE0 or not path.is_dir() or (kept / MODEL_CONFIG_FILE).is_file():
        return
    folder = find_model_folder(path)
    if (
        "class" not in read_model_config(folder)
        or sum((folder / name).stat().st_size for name in NETWORK_FILES) > MAX_NETWORK_BYTES
    ):
        return
    load_extractor_like(extractor.about)  # the folder may have changed since the network was read
    for name in NETWORK_FILES:
        with write_atomically(kept / name) as part:
            shutil.copyfile(folder / name, part)


def load_extractor_for_model(
    model: Path, made: dict[str, Any], detector: str | None = None, boxes: Places | None = None, device: str = "auto"
) -> LoadedExtractor:
    """Loads the extractor of the regions that a model was trained on.

    Args:
        model: Run or model folder.
        made: The model's metadata of its regions.
        detector: Path of the network; by default in the model folder, or else its original path.
        boxes: Source of the boxes; by default the original one.
        device: PyTorch device: auto or its name.

    Raises:
        CheckpointError: There is no such network, or it is damaged, or another one.
        DataError: The features were extracted by other software.
    """
    then, beside = str(made.get("detector")), find_model_folder(model) / MODEL_NETWORK_FOLDER
    lies = detector or next(map(str, find_networks_beside(beside, Path(then).name)), then)
    if lies != LITE0 and "detector" in made and not Path(lies).exists():
        raise CheckpointError(
            f"{model} was trained on regions of {describe_regions(made)}, "
            f"and their network is not in {lies}: put it there, or "
            f"into {beside}"
        )
    return load_extractor_like(made, lies, boxes, device)


def find_networks_beside(beside: Path, name: str) -> list[Path]:
    """The network stored with a model: a model folder, or a file that a user has put there under its own name."""
    return [path for path in (beside, beside / name) if (path / MODEL_CONFIG_FILE).is_file() or path.is_file()]


def check_network_beside(model: Path) -> None:
    """Checks the network stored with a model, if there is one.

    Raises:
        CheckpointError: It is damaged, or another network than that of the model's regions.
        DataError: The model has no metadata of its regions.
    """
    beside = find_model_folder(model) / MODEL_NETWORK_FOLDER
    if (beside / MODEL_CONFIG_FILE).is_file():
        learnt = read_training_regions(find_model_folder(model))
        if learnt is None:
            raise DataError(f"{model} has a network in {beside} and does not say of what regions it has learnt")
        load_extractor_like(learnt, str(beside))
