"""What a model keeps of the regions that it learns from: what they were made of, and the network that made them.

So that a model can be asked about any picture wherever it is moved, and whatever becomes of the folders that it was
made from. A network that is a model folder of comodal lies in the store (STORE/network, regions/region_network.py), is
copied beside every model that learns from it (MODEL/regions_network), and goes on to what is fine-tuned from that.
Weights that others have published are not copied; whoever wants a model with them beside it puts them there.
"""

from collections.abc import Mapping
from pathlib import Path

from comodal.data.regions.region_compatibility import REGIONS, learnt_from
from comodal.data.regions.region_store import RegionStore
from comodal.models.checkpoint import CONFIG, WEIGHTS, model_folder, read_weights

IN_STORE, BESIDE_MODEL = "network", "regions_network"
FILES = (WEIGHTS, CONFIG)  # in this order: a folder with a config.json is a model


def remembered(store: RegionStore, model: Path | None = None) -> Mapping[str, bytes | Path]:
    """The files that a model keeps beside its weights, by name: their content, or where they lie.

    Args:
        store: The regions that it learns from.
        model: Run or model folder that training begins with; the network beside it goes on if it made the store's.

    Raises:
        CheckpointError: The network is damaged.
    """
    described: dict[str, bytes | Path] = {REGIONS: store.described()}
    network = store.folder / IN_STORE
    if not (network / CONFIG).is_file() and model is not None:
        beside, made = model_folder(model), store.about["made_from"]
        if (learnt_from(beside) or {}).get("fingerprint") == made.get("fingerprint"):
            network = beside / BESIDE_MODEL
    if not (network / CONFIG).is_file():
        return described
    read_weights(network / WEIGHTS)  # what is damaged is told before training, and not when it is over
    return described | {f"{BESIDE_MODEL}/{name}": network / name for name in FILES}
