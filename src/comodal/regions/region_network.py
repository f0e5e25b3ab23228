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
from comodal.regions.extractors import LoadedExtractor, load_extractor_like
from comodal.regions.region_extractor import BoxSource
from comodal.registry import REGION_EXTRACTORS
from comodal.tasks.vision_language.region_record import MODEL_NETWORK_FOLDER, NETWORK_FILES, STORE_NETWORK_FOLDER

MAX_NETWORK_BYTES = 200_000_000  # larger networks stay where they are


def copy_network_to_store(extractor: LoadedExtractor, store: Path) -> None:
    """Copies the network into the store of its regions, if it is a model folder of comodal and not too large.

    Raises:
        CheckpointError: The folder holds another network than when the regions were extracted.
    """
    path, store_network = Path(extractor.source.detector), store / STORE_NETWORK_FOLDER
    if (
        extractor.source.detector in REGION_EXTRACTORS
        or not path.is_dir()
        or (store_network / MODEL_CONFIG_FILE).is_file()
    ):
        return
    folder = find_model_folder(path)
    if (
        "class" not in read_model_config(folder)
        or sum((folder / name).stat().st_size for name in NETWORK_FILES) > MAX_NETWORK_BYTES
    ):
        return
    load_extractor_like(extractor.about)  # the folder may have changed since the network was read
    for name in NETWORK_FILES:
        with write_atomically(store_network / name) as part:
            shutil.copyfile(folder / name, part)


def load_extractor_for_images(model: Path, regions: dict[str, Any], device: str) -> LoadedExtractor:
    """Loads the extractor of a model's regions, for new images.

    Args:
        model: Run or model folder.
        regions: The model's metadata of its regions.
        device: PyTorch device.

    Raises:
        CheckpointError: There is no such network, or it is damaged, or another one.
        DataError: The regions were extracted by other software.
    """
    try:
        return load_extractor_for_model(model, regions["provenance"], device=device)
    except DataError as error:
        raise DataError(f"{model}: regions of a new image cannot be extracted: {error}") from error


def load_extractor_for_model(
    model: Path,
    provenance: dict[str, Any],
    detector: str | None = None,
    boxes: BoxSource | None = None,
    device: str = "auto",
) -> LoadedExtractor:
    """Loads the extractor of the regions that a model was trained on.

    Args:
        model: Run or model folder.
        provenance: The model's metadata of its regions.
        detector: Path of the network; by default in the model folder, or else its original path.
        boxes: Source of the boxes; by default the original one.
        device: PyTorch device: auto or its name.

    Raises:
        CheckpointError: There is no such network, or it is damaged, or another one.
        DataError: The features were extracted by other software.
    """
    original_path, network_folder = str(provenance.get("detector")), find_model_folder(model) / MODEL_NETWORK_FOLDER
    network_path = detector or next(
        map(str, find_stored_networks(network_folder, Path(original_path).name)), original_path
    )
    is_name = network_path in REGION_EXTRACTORS
    if not is_name and "detector" in provenance and not Path(network_path).exists():
        raise CheckpointError(
            f"{model} was trained on regions of {describe_regions(provenance)}, "
            f"whose network was not found at {network_path}: put it there, or "
            f"into {network_folder}"
        )
    return load_extractor_like(provenance, network_path, boxes, device)


def find_stored_networks(network_folder: Path, name: str) -> list[Path]:
    """The network stored with a model: a model folder, or a file that a user has put there under its own name."""
    return [
        path
        for path in (network_folder, network_folder / name)
        if (path / MODEL_CONFIG_FILE).is_file() or path.is_file()
    ]


def check_stored_network(model: Path) -> None:
    """Checks the network stored with a model, if there is one.

    Raises:
        CheckpointError: It is damaged, or another network than that of the model's regions.
        DataError: The model has no metadata of its regions.
    """
    network_folder = find_model_folder(model) / MODEL_NETWORK_FOLDER
    if (network_folder / MODEL_CONFIG_FILE).is_file():
        provenance = read_training_regions(find_model_folder(model))
        if provenance is None:
            raise DataError(
                f"{model} has a network in {network_folder} but does not record the regions it was trained on"
            )
        load_extractor_like(provenance, str(network_folder))
