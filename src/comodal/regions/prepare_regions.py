"""`comodal prepare regions`: makes a region store from published features, or from images as `comodal extract` does."""

from pathlib import Path
from typing import Literal

from comodal.data.regions.convert_features import convert_regions
from comodal.data.regions.region_store import FeatureType
from comodal.data.regions.store_summary import RegionStoreSummary
from comodal.flat_parameters import flatten_parameters
from comodal.hardware import DeviceName
from comodal.regions.extract import DEFAULT_SETTINGS, ExtractionWorkers, extract_regions
from comodal.regions.region_extractor import RegionSettings

From = Literal["auto", "lmdb", "tensorpack", "npy", "tsv", "hdf5", "grid", "boxes"]


@flatten_parameters
def prepare_regions(
    source: Path,
    out: Path,
    from_: From = "auto",
    network: str | None = None,
    boxes: Path | None = None,
    settings: RegionSettings = DEFAULT_SETTINGS,
    dtype: FeatureType = "float16",
    device: DeviceName = "auto",
) -> RegionStoreSummary:
    """Make a store of region features, boxes and class probabilities, from features or from images.

    Features: LMDB (vilbert-multi-task's, vilbert_beta's, MMF's, tensorpack's), bottom-up-attention's TSV with 6 or 7
    columns, LXMERT's with 10, folders of .npy, HDF5. Pickles in them are read without executing code. Images: a grid of
    boxes, or given boxes, as in `comodal extract`. An interrupted command continues when it is run again. Rejected
    images are listed with the reason in OUT/report.jsonl.

    Args:
        source: A file or folder of features, or a folder of images.
        out: The store to make.
        from_: Kind of the source; by default features in a layout that is recognized. grid and boxes are images.
        network: For images: efficientnet_lite0 (ImageNet; extra `lite`), or any other detector of `comodal extract`.
        boxes: For images: JSON Lines of `image` and `boxes` (left, top, right, bottom in pixels).
        settings: For images: the settings of the extractor.
        dtype: Type of the stored features.
        device: For images: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.

    Returns:
        The number of images and regions, and of refused images by reason.

    Raises:
        DataError: The source cannot be read, OUT holds something else, or the disk is full.

    Examples:
        comodal prepare regions datasets/flickr30k.lmdb regions/
        comodal prepare regions trainval_36.tsv regions/
        comodal prepare regions photos/ regions/ --from grid --network efficientnet_lite0
        comodal prepare regions photos/ regions/ --from boxes --boxes boxes.jsonl --network runs/l3net
    """
    if from_ == "grid" or from_ == "boxes":
        if network is None or (from_ == "boxes") != (boxes is not None):
            raise ValueError("images need --network, and --from boxes needs --boxes FILE (--from grid none)")
        compute = ExtractionWorkers(device=device)
        return extract_regions(source, out, network, boxes or "grid", settings=settings, dtype=dtype, compute=compute)
    if network is not None or boxes is not None:
        raise ValueError("--network and --boxes are for images: add --from grid or --from boxes")
    return convert_regions(source, out, None if from_ == "auto" else from_, dtype)
