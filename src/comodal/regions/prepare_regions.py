"""`comodal prepare regions`: a region store out of other people's features, or, as `comodal extract`, out of images."""

from pathlib import Path
from typing import Literal

from comodal.data.regions.convert_features import convert_regions
from comodal.data.regions.region_store import FeatureType
from comodal.regions.extract import extract_regions

From = Literal["auto", "lmdb", "tensorpack", "npy", "tsv", "hdf5", "grid", "boxes"]


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
    columns, LXMERT's with 10, folders of .npy, HDF5. Pickles in them are read without running anything. Images: a grid
    of boxes, or given boxes, as `comodal extract` makes them. Killed and started again, the command goes on; what was
    not taken, and why, is in OUT/report.jsonl.

    Args:
        source: A file or folder of features, or a folder of images.
        out: The store to make.
        from_: What the source is; by default features in a layout that is recognised. grid and boxes are images.
        network: For images: efficientnet_lite0 (ImageNet; extra `lite`), or whatever else `comodal extract` takes.
        boxes: For images: JSON Lines of `image` and `boxes` (left, top, right, bottom in pixels).
        grid: For images: rows and columns of the grid.
        cells: For images: a box is cut into so many rows and columns, whose features stand one behind the other.
        size: For images: their short side as the network sees them.
        dtype: How features are kept.

    Returns:
        How many images were taken, and how many not.

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
