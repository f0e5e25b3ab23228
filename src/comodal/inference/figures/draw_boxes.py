"""Draws the boxes that a phrase is grounded to (`comodal ground --out`)."""

from collections.abc import Sequence

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.console import escape_plot_text
from comodal.inference.vision_language import EncodedImage, GroundedBox


def draw_grounded_boxes(encoded_image: EncodedImage, boxes: Sequence[GroundedBox], phrase: str) -> Figure:
    """The image with the boxes."""
    height, width = encoded_image.image.shape[:2]
    figure = Figure(figsize=(6, 0.4 + 6 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.imshow(encoded_image.image)
    axes.set_axis_off()
    axes.set_title(escape_plot_text(phrase), fontsize=10)
    for box in boxes:
        left, top, right, bottom = box.box
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#d9a441", linewidth=2))
        axes.text(left, top, f"{box.probability:.2f}", color="white", backgroundcolor="#00000080", fontsize=8)
    return figure
