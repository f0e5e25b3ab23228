"""A page about the attention between tokens and regions: every co-attention layer, in both directions."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.analysis.co_attention import AttentionExample, CoAttentionWeights, draw_boxes, shade_by_attention
from comodal.analysis.pages.html_page import write_page
from comodal.analysis.pages.page_parts import (
    PageColumn,
    PageColumns,
    PageDetails,
    PageImage,
    PageImageRow,
    PageRow,
    PageSection,
    PageTable,
    embed_figure,
    encode_photo_uri,
)
from comodal.media.image import resize_short_side

REGION_THUMBNAIL_PIXELS = 150  # short side of a shaded image, in pixels
ATTENTION_LEGEND = (
    "The weights of each co-attention layer, averaged over its heads. The brighter a region, the more the token "
    "attends to it. The whole image is a region too; its weight is a number. The table below shows the other "
    "direction: how much one region attends to each token. Attention shows where the model looks, not why it predicts "
    "what it does."
)


def write_attention_page(
    out: Path, examples: Sequence[AttentionExample], answers: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Writes one self-contained page.

    Args:
        out: The page to write.
        examples: Texts with their images.
        answers: The predictions for each example, with their probabilities.
    """
    sections = []
    for example, predicted in zip(examples, answers, strict=True):
        columns = [PageColumn("prediction"), PageColumn("probability", "number")]
        rows = [PageRow((text, f"{probability:.3f}")) for text, probability in predicted]
        regions = embed_figure(draw_example_regions(example), f"the image with its regions: {example.text}")
        table = PageTable(f"Predictions for: {example.text}", columns, rows)
        sections.append(PageSection(example.text, "The image with its regions, and the predictions.", [regions, table]))
        sections.append(PageSection("Co-attention", ATTENTION_LEGEND, list_layers(example)))
    write_page(out, "Attention between tokens and regions", sections)


def draw_example_regions(example: AttentionExample) -> Figure:
    """The image with its regions, large."""
    height, width = example.image.shape[:2]
    figure = Figure(figsize=(5, 5 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_axis_off()
    draw_boxes(axes, example)
    return figure


def list_layers(example: AttentionExample) -> list[PageDetails]:
    """All layers, the last one first and open, the others collapsed."""
    small = shrink_example(example)
    return [
        PageDetails(
            f"Co-attention layer {index + 1}",
            [
                build_token_attention(small, example.layers[index]),
                build_region_attention(small, example.layers[index], select_region_row(example, example.layers[index])),
            ],
            is_open=index == len(example.layers) - 1,
        )
        for index in reversed(range(len(example.layers)))
    ]


def shrink_example(example: AttentionExample) -> AttentionExample:
    """The same example with a small image."""
    height, width = example.image.shape[:2]
    resized = resize_short_side(example.image, min(REGION_THUMBNAIL_PIXELS, height, width))
    scale = np.array([resized.shape[1] / width, resized.shape[0] / height] * 2, np.float32)
    return example._replace(image=resized, boxes=example.boxes * scale)


def build_token_attention(example: AttentionExample, layer: CoAttentionWeights) -> PageImageRow:
    """The image shaded by the attention of each token."""
    images = []
    for token in example.token_indices:
        weights, name = layer.token_to_region[token], example.tokens[token]
        best = f"best {weights[1:].max(initial=0.0):.3f}, whole image {weights[0]:.3f}"
        source = encode_photo_uri(render_attention(example, weights[1:]))
        images.append(PageImage(f"the image, shaded by the attention of {name}", source, name, best))
    return PageImageRow(images)


def build_region_attention(example: AttentionExample, layer: CoAttentionWeights, row: int) -> PageColumns:
    """One region, and its attention to each token."""
    name = f"region {row}" if row else "the whole image"
    highlighted = render_attention(example, np.eye(len(example.boxes))[row - 1]) if row else example.image
    rows = [
        PageRow((token, weight))
        for token, weight in zip(example.tokens, layer.region_to_token[row].tolist(), strict=True)
    ]
    table = PageTable(f"Attention of {name} to each token", [PageColumn("token"), PageColumn("attention", "bar")], rows)
    return PageColumns([PageImageRow([PageImage(name, encode_photo_uri(highlighted), caption=name)]), table])


def select_region_row(example: AttentionExample, layer: CoAttentionWeights) -> int:
    """The grounded region, or else the one with the highest attention from the shown tokens; 0 is the whole image."""
    if example.grounded_box is None:
        return 1 + int(layer.token_to_region[example.token_indices, 1:].mean(0).argmax())
    is_grounded = (example.boxes == np.array(example.grounded_box, example.boxes.dtype)).all(1)
    return 1 + int(is_grounded.argmax()) if is_grounded.any() else 0


def render_attention(
    example: AttentionExample, attention: Float[np.ndarray, "regions"]
) -> UInt8[np.ndarray, "height width 3"]:
    """The image shaded by attention, as bytes."""
    return (shade_by_attention(example, attention) * 255).round().astype(np.uint8)
