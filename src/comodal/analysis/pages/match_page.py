"""Figures of correspondence over time: the curve of its probability, and frames shaded by localization."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.analysis.heatmaps import normalize_map, resize_maps, shade_by_heat
from comodal.analysis.pages.html_page import write_page
from comodal.analysis.pages.page_parts import (
    PageColumn,
    PageDetails,
    PageFact,
    PageFacts,
    PageRow,
    PageSection,
    PageTable,
    embed_figure,
)
from comodal.console import escape_plot_text
from comodal.media.image import decode_jpeg

FRAME_COLUMNS, MAX_SHOWN_FRAMES = 6, 18


class MatchWindow(NamedTuple):
    """The prediction for a frame and the second of audio around it; only the frame where the audio is silent."""

    seconds: float
    probability: float | None
    x: float | None  # of the best matching position, as fractions of the image
    y: float | None
    position_margins: Float[np.ndarray, "rows columns"] | None
    jpeg: bytes

    def __repr__(self) -> str:
        """One line, without the map and the frame."""
        return f"MatchMoment(seconds={self.seconds}, probability={self.probability}, x={self.x}, y={self.y})"


def draw_match_windows(title: str, windows: Sequence[MatchWindow]) -> Figure:
    """The curve over time above at most 18 equally spaced frames."""
    indices = np.unique(
        np.linspace(0, len(windows) - 1, min(MAX_SHOWN_FRAMES, len(windows))).round().astype(int)
    ).tolist()
    height, width, _ = decode_jpeg(windows[0].jpeg).shape
    rows = -(-len(indices) // FRAME_COLUMNS)
    row = 10.0 / FRAME_COLUMNS * min(height / width, 2.5) + 0.35
    figure = Figure(figsize=(10.0, 2.4 + rows * row), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(rows + 1, FRAME_COLUMNS, height_ratios=[2.2, *[row] * rows])
    draw_match_curve(figure.add_subplot(grid[0, :]), windows)
    figure.suptitle(escape_plot_text(title), fontsize=11)
    for cell, index in enumerate(indices):
        draw_match_frame(figure.add_subplot(grid[1 + cell // FRAME_COLUMNS, cell % FRAME_COLUMNS]), windows[index])
    return figure


def draw_match_curve(axes: Axes, windows: Sequence[MatchWindow]) -> None:
    """The probability of correspondence by second, with a gap where the audio is silent."""
    values = [np.nan if window.probability is None else window.probability for window in windows]
    axes.plot([window.seconds for window in windows], values, color="#3b6ea5", marker="o", markersize=4)
    axes.axhline(0.5, color="#999999", linestyle=":", linewidth=1.0)
    axes.set_ylim(-0.03, 1.03)
    axes.set_ylabel("probability of\ncorrespondence")
    axes.set_xlabel("second")
    axes.spines[["top", "right"]].set_visible(False)


def draw_match_frame(axes: Axes, window: MatchWindow) -> None:
    """A frame, shaded by the match of each position with the audio, with a cross at the maximum."""
    frame = decode_jpeg(window.jpeg)
    axes.set_axis_off()
    if window.probability is None or window.position_margins is None or window.x is None or window.y is None:
        axes.imshow(frame)
        axes.set_title(f"{window.seconds:.1f} s: silent", fontsize=8)
        return
    height, width, _ = frame.shape
    heat = normalize_map(resize_maps(torch.from_numpy(window.position_margins)[None], (height, width))[0].numpy())
    axes.imshow(shade_by_heat(frame, heat))
    axes.plot(window.x * width - 0.5, window.y * height - 0.5, "+", color="#35d0ba", markersize=9, markeredgewidth=2)
    axes.set_title(f"{window.seconds:.1f} s: {window.probability:.2f}", fontsize=8)


def write_match_page(out: Path, title: str, probability: float, windows: Sequence[MatchWindow]) -> None:
    """Writes a page with the figure and a table of all windows."""
    text = (
        "The probability of correspondence of each frame with the audio around it. Brightness is the margin of match "
        "over mismatch of each position alone, scaled from the lowest to the highest of the frame. A cross marks the "
        "highest. A silent window has no prediction."
    )
    columns = [PageColumn("second"), PageColumn("probability of correspondence", "number")]
    columns += [PageColumn("x", "number"), PageColumn("y", "number")]
    table = PageTable("Windows; x and y are fractions of the frame", columns, list(map(build_window_row, windows)))
    figure_html = embed_figure(
        draw_match_windows(title, windows), "probability of correspondence over time, and frames"
    )
    mean = PageFacts([PageFact(f"{probability:.3f}", "probability of correspondence, mean")])
    table_html = PageDetails(f"All {len(windows)} windows", [table])
    write_page(out, title, [PageSection("Correspondence over time", text, [mean, figure_html, table_html])])


def build_window_row(window: MatchWindow) -> PageRow:
    """One window as a row of a table."""
    if window.probability is None:
        return PageRow((f"{window.seconds:.2f}", "silent", "", ""))
    return PageRow((f"{window.seconds:.2f}", f"{window.probability:.3f}", f"{window.x:.2f}", f"{window.y:.2f}"))
