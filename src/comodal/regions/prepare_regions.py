"""`comodal prepare regions`: makes a region store from published features, or from images as `comodal extract` does."""

from pathlib import Path
from typing import Literal

from comodal.data.regions.convert_features import convert_regions
from comodal.data.regions.region_store import FeatureType
from comodal.flat_parameters import flatten_parameters
from comodal.regions.extract import extract_regions

From = Literal["auto", "lmdb", "tensorpack", "npy", "tsv", "hdf5", "grid", "boxes"]


@flatten_parameters
def prepare_regions(
    source: Path,
    out: Path,
    from_: From = "auto",
    network: str | None = None,
    boxes: Path | None = None,
    grid: int = 6,
    cells: int = 1,
    size: int | None = None,
    dtype: FeatureType = "float16",
) -> dict[str, int]:
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
        grid: For images: rows and columns of the grid.
        cells: For images: a box is divided into this number of rows and columns, whose features are concatenated.
        size: For images: their short side as the network's input.
        dtype: Type of the stored features.

    Returns:
        The counts of stored and of rejected images.

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
        return extract_regions(source, out, network, boxes or "grid", grid, cells, size, dtype)
    if network is not None or boxes is not None:
        raise ValueError("--network and --boxes are for images: add --from grid or --from boxes")
    return convert_regions(source, out, None if from_ == "auto" else from_, dtype)
