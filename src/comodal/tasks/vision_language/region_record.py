"""The record of the regions that a model is trained on: how they were extracted, and by which network.

It makes a model folder self-contained, so that the model can be used on any image after it is moved. An extraction
network that is a comodal model folder is stored in the region store (STORE/network, regions/region_network.py). It is
copied into every model trained on that store (MODEL/regions_network), and into models fine-tuned from that model.
Weights published by others are not copied automatically.
"""

from collections.abc import Mapping
from pathlib import Path

from comodal.data.regions.region_compatibility import REGION_SETTINGS_FILE, read_training_regions
from comodal.data.regions.region_store import RegionStore
from comodal.models.checkpoint import MODEL_CONFIG_FILE, MODEL_WEIGHTS_FILE, find_model_folder, read_weights

STORE_NETWORK_FOLDER, MODEL_NETWORK_FOLDER = "network", "regions_network"
NETWORK_FILES = (MODEL_WEIGHTS_FILE, MODEL_CONFIG_FILE)  # in this order: a folder with a config.json is a model


def collect_region_record(store: RegionStore, model: Path | None = None) -> Mapping[str, bytes | Path]:
    """The files that a model stores with its weights, by name: their content, or their path.

    Args:
        store: The regions that the model is trained on.
        model: Run or model folder that training starts from; its extraction network is kept if it made the store.

    Raises:
        CheckpointError: The network is damaged.
    """
    files: dict[str, bytes | Path] = {REGION_SETTINGS_FILE: store.encode_provenance()}
    network = store.folder / STORE_NETWORK_FOLDER
    if not (network / MODEL_CONFIG_FILE).is_file() and model is not None:
        model_folder, region_source = find_model_folder(model), store.about["provenance"]
        if (read_training_regions(model_folder) or {}).get("fingerprint") == region_source.get("fingerprint"):
            network = model_folder / MODEL_NETWORK_FOLDER
    if not (network / MODEL_CONFIG_FILE).is_file():
        return files
    read_weights(network / MODEL_WEIGHTS_FILE)  # report damage before training, not after it
    return files | {f"{MODEL_NETWORK_FOLDER}/{name}": network / name for name in NETWORK_FILES}
