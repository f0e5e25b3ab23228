"""The network that made regions, kept beside them, and found again beside the models that have learnt from them.

Wherever it lies, its fingerprint must be that of the regions.
"""

import shutil
from pathlib import Path
from typing import Any

from comodal.data.regions.region_compatibility import learnt_from, named
from comodal.errors import CheckpointError, DataError
from comodal.files import whole
from comodal.models.checkpoint import CONFIG, model_folder, read_config
from comodal.regions.backbones import LITE0
from comodal.regions.extractors import LoadedExtractor, Places, extractor_like
from comodal.tasks.vision_language.region_record import BESIDE_MODEL, FILES, IN_STORE

MOST_BYTES = 200_000_000  # larger networks stay where they are


def keep_network(extractor: LoadedExtractor, store: Path) -> None:
    """Puts the network into the store of its regions, if it is a model folder of comodal and not very large.

    Raises:
        CheckpointError: The folder holds another network than when the regions were made.
    """
    path, kept = Path(extractor.source.detector), store / IN_STORE
    if extractor.source.detector == LITE0 or not path.is_dir() or (kept / CONFIG).is_file():
        return
    folder = model_folder(path)
    if "class" not in read_config(folder) or sum((folder / name).stat().st_size for name in FILES) > MOST_BYTES:
        return
    extractor_like(extractor.about)  # the folder may have changed since the network was read
    for name in FILES:
        with whole(kept / name) as part:
            shutil.copyfile(folder / name, part)


def extractor_for(
    model: Path, made: dict[str, Any], detector: str | None = None, boxes: Places | None = None, device: str = "auto"
) -> LoadedExtractor:
    """What makes regions of the kind that a model has learnt from.

    Args:
        model: Run or model folder.
        made: What it says of its regions.
        detector: Where the network lies; by default beside the model, or else where it lay then.
        boxes: Where boxes come from; by default from where they came then.
        device: Where PyTorch computes: auto or the name of a device.

    Raises:
        CheckpointError: There is no such network, or it is damaged, or another one.
        DataError: They are features that others had extracted.
    """
    then, beside = str(made.get("detector")), model_folder(model) / BESIDE_MODEL
    lies = detector or next(map(str, found_in(beside, Path(then).name)), then)
    if lies != LITE0 and "detector" in made and not Path(lies).exists():
        raise CheckpointError(
            f"{model} has learnt from regions of {named(made)}, and their network is not in {lies}: put it there, or "
            f"into {beside}"
        )
    return extractor_like(made, lies, boxes, device)


def found_in(beside: Path, name: str) -> list[Path]:
    """The network beside a model: a model folder, or what somebody has put there under its own name."""
    return [path for path in (beside, beside / name) if (path / CONFIG).is_file() or path.is_file()]


def check_kept(model: Path) -> None:
    """Checks the network beside a model, if there is one.

    Raises:
        CheckpointError: It is damaged, or another network than that of the model's regions.
        DataError: The model does not say of what regions it has learnt.
    """
    beside = model_folder(model) / BESIDE_MODEL
    if (beside / CONFIG).is_file():
        learnt = learnt_from(model_folder(model))
        if learnt is None:
            raise DataError(f"{model} has a network in {beside} and does not say of what regions it has learnt")
        extractor_like(learnt, str(beside))
