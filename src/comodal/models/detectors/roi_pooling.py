"""RoIPool of many boxes on one map, vectorized over channels, with the same bits as torchvision's.

The maximum of a rectangle is the maximum of four windows in it whose sides are powers of two. These windows are
computed once for the map (a sparse table). A bin of a region then needs four rows of the table, where the usual loop
reads each pixel of the bin, channel by channel (RoIPool: Girshick, ICCV 2015, section 2.1). It also supports bfloat16,
which torchvision's does not, and returns channels_last, which makes the following convolutions more than twice as fast.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class Maxima(NamedTuple):
    """Sparse table: maxima of a map in windows of 1, 2, 4, ... rows and columns from each position on."""

    values: Float[Tensor, "windows_and_positions channels"]
    levels: int
    rows: int
    columns: int


class Bins(NamedTuple):
    """Bins on one axis of the regions: first position and length, of shape (regions, bins)."""

    firsts: Int64[Tensor, "regions bins"]
    counts: Int64[Tensor, "regions bins"]


def build_maxima(feature_map: Float[Tensor, "1 channels rows columns"], bins: int) -> Maxima:
    """Builds the table of a map for regions with this number of bins per side."""
    rows, columns = feature_map.shape[2:]
    max_positions = max(rows, columns) // bins + 2  # positions in a bin
    levels = max_positions.bit_length()
    row_windows = feature_map[0].permute(1, 2, 0).contiguous()
    table = []
    for level in range(levels):
        windows = row_windows
        for step in range(levels):
            table.append(windows)
            windows = double_windows(windows, 1, 2**step)
        row_windows = double_windows(row_windows, 0, 2**level)
    return Maxima(torch.stack(table).flatten(0, 2), levels, rows, columns)


def double_windows(
    windows: Float[Tensor, "rows columns channels"], axis: int, size: int
) -> Float[Tensor, "rows columns channels"]:
    """Doubles the windows on an axis: the maximum of each window and the next one, where there is one."""
    num_pairs = windows.shape[axis] - size
    if num_pairs <= 0:
        return windows
    doubled = windows.clone()
    torch.maximum(
        windows.narrow(axis, 0, num_pairs),
        windows.narrow(axis, size, num_pairs),
        out=doubled.narrow(axis, 0, num_pairs),
    )
    return doubled


def pool_rois(
    table: Maxima, boxes: Float[Tensor, "regions 4"], bins: int, scale: float
) -> Float[Tensor, "regions channels bins bins"]:
    """The maximum in each bin of each box, 0 where a bin is outside the map; in the layout channels_last.

    Args:
        table: Table of the map.
        boxes: Boxes in pixels.
        bins: Bins on each side of a box.
        scale: Cells of the map per pixel.
    """
    down = compute_bins(boxes[:, 1], boxes[:, 3], bins, scale, table.rows)
    across = compute_bins(boxes[:, 0], boxes[:, 2], bins, scale, table.columns)
    tall, wide = compute_table_level(down.counts), compute_table_level(across.counts)
    window = (tall[:, :, None] * table.levels + wide[:, None, :]) * (table.rows * table.columns)
    tops = (down.firsts, down.firsts + down.counts - 2**tall)
    lefts = (across.firsts, across.firsts + across.counts - 2**wide)
    maxima: Tensor | None = None
    for top in tops:
        for left in lefts:
            window_index = window + (top * table.columns)[:, :, None] + left[:, None, :]
            values = table.values.index_select(0, window_index.clamp(0, len(table.values) - 1).flatten())
            maxima = values if maxima is None else torch.maximum(maxima, values, out=maxima)
    assert maxima is not None
    empty = (down.counts <= 0)[:, :, None] | (across.counts <= 0)[:, None, :]
    maxima[empty.flatten()] = 0
    return maxima.view(len(boxes), bins, bins, table.values.shape[1]).permute(0, 3, 1, 2)


def compute_bins(
    starts: Float[Tensor, " regions"], ends: Float[Tensor, " regions"], bins: int, scale: float, length: int
) -> Bins:
    """Bins of a side on the map: ends are rounded to cells and are inclusive; bins may share a cell."""
    first, last = round_half_away(starts * scale), round_half_away(ends * scale)
    size = (last - first + 1).clamp(min=1) / bins
    steps = torch.arange(bins + 1, device=starts.device, dtype=starts.dtype)
    begin = ((steps[:-1] * size[:, None]).floor() + first[:, None]).clamp(0, length).long()
    end = ((steps[1:] * size[:, None]).ceil() + first[:, None]).clamp(0, length).long()
    return Bins(begin, end - begin)


def round_half_away(x: Float[Tensor, " regions"]) -> Float[Tensor, " regions"]:
    """Rounds to the nearest integer, halves away from 0, as C does."""
    return x.trunc() + ((x - x.trunc()).abs() >= 0.5) * x.sign()


def compute_table_level(count: Int64[Tensor, "regions bins"]) -> Int64[Tensor, "regions bins"]:
    """The exponent of the largest power of two that fits."""
    return count.clamp(min=1).double().log2().floor().long()
