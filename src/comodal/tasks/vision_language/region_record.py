"""What a model keeps of the regions that it learns from: what they were made of, and the network that made them.

So that a model can be asked about any picture wherever it is moved, and whatever becomes of the folders that it was
made from. A network that is a model folder of comodal lies in the store (STORE/network, regions/region_network.py), is
copied beside every model that learns from it (MODEL/regions_network), and goes on to what is fine-tuned from that.
Weights that others have published are not copied; whoever wants a model with them beside it puts them there.
"""

from collections.abc import Mapping
from pathlib import Path

from comodal.data.regions.region_compatibility import REGION_SETTINGS_FILE, read_training_regions
from comodal.data.regions.region_store import RegionStore
from comodal.models.checkpoint import MODEL_CONFIG_FILE, MODEL_WEIGHTS_FILE, find_model_folder, read_weights

STORE_NETWORK_FOLDER, MODEL_NETWORK_FOLDER = "network", "regions_network"
NETWORK_FILES = (MODEL_WEIGHTS_FILE, MODEL_CONFIG_FILE)  # in this order: a folder with a config.json is a model


def collect_region_record(store: RegionStore, model: Path | None = None) -> Mapping[str, bytes | Path]:
    """The files that a model keeps beside its weights, by name: their content, or where they lie.

    Args:
        store: The regions that it learns from.
        model: Run or model folder that training begins with; the network beside it goes on if it made the store's.

    Raises:
        CheckpointError: The network is damaged.
    """
    described: dict[str, bytes | Path] = {REGION_SETTINGS_FILE: store.described()}
    network = store.folder / STORE_NETWORK_FOLDER
    if not (network / MODEL_CONFIG_FILE).is_file() and model is not None:
        beside, made = find_model_folder(model), store.about["made_from"]
        if (read_training_regions(beside) or {}).get("fingerprint") == made.get("fingerprint"):
            network = beside / MODEL_NETWORK_FOLDER
    if not (network / MODEL_CONFIG_FILE).is_file():
        return described
    read_weights(network / MODEL_WEIGHTS_FILE)  # what is damaged is told before training, and not when it is over
    return described | {f"{MODEL_NETWORK_FOLDER}/{name}": network / name for name in NETWORK_FILES}
