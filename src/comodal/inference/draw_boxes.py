"""Draws the boxes that a phrase is grounded to (`comodal ground --out`)."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.inference.vision_language import EncodedImage, GroundedBox


def draw_grounded_boxes(seen: EncodedImage, places: Sequence[GroundedBox], phrase: str) -> Figure:
    """The image with the boxes."""
    height, width = seen.picture.shape[:2]
    figure = Figure(figsize=(6, 0.4 + 6 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(seen.picture)
    axes.set_axis_off()
    axes.set_title(phrase, fontsize=10, parse_math=False)
    for place in places:
        left, top, right, bottom = place.box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#d9a441", linewidth=2))
        axes.text(left, top, f"{place.probability:.2f}", color="white", backgroundcolor="#00000080", fontsize=8)
    return figure
