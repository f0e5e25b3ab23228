"""A page about the attention between tokens and regions: every co-attention layer, in both directions."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.analysis.co_attention import AttentionExample, CoAttentionWeights, draw_boxes, shade_by_attention
from comodal.analysis.pages.html_page import embed_figure, embed_photo, format_section, write_page
from comodal.media.image import resize_short_side

REGION_THUMBNAIL_PIXELS = 150  # short side of a shaded image, in pixels


def write_attention_page(
    out: Path, shown: Sequence[AttentionExample], answers: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Writes one self-contained page.

    Args:
        out: The page to write.
        shown: Texts with their images.
        answers: The predictions for each example, with their probabilities.
    """
    parts = ["<h1>What the words look at</h1>"]
    for example, said in zip(shown, answers, strict=True):
        rows = "".join(
            f'<tr><td>{html.escape(text)}</td><td class="number">{probability:.3f}</td></tr>'
            for text, probability in said
        )
        table = f"<table><tr><th>answer</th><th>probability</th></tr>{rows}</table>"
        body = embed_figure(draw_example_regions(example), "the picture with its regions") + table
        parts.append(format_section(example.text, "The picture with its regions, and what the model says.", body))
        parts.append(format_section("Attention", ATTENTION_LEGEND, format_layers(example)))
    write_page(out, "What the words look at", parts)


ATTENTION_LEGEND = (
    "Of each co-attention layer, mean of its heads. The brighter a region, the more the word attends to it; the whole "
    "image, which is a region too, is the number beside it. Then the other direction: how much one region attends to "
    "each word. Attention says where the model looks, not why it answers as it does."
)


def draw_example_regions(example: AttentionExample) -> Figure:
    """The image with its regions, large."""
    height, width = example.picture.shape[:2]
    figure = Figure(figsize=(5, 5 * height / width), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.set_axis_off()
    draw_boxes(axes, example)
    return figure


def format_layers(example: AttentionExample) -> str:
    """All layers, the last one first and open, the others collapsed."""
    small = shrink_example(example)
    parts = []
    for number in reversed(range(len(example.layers))):
        opened = " open" if number == len(example.layers) - 1 else ""
        layer = example.layers[number]
        body = format_token_attention(small, layer) + format_region_attention(
            small, layer, select_region_row(example, layer)
        )
        parts.append(f"<details{opened}><summary>Co-attention layer {number + 1}</summary>{body}</details>")
    return "".join(parts)


def shrink_example(example: AttentionExample) -> AttentionExample:
    """The same example with a small image."""
    height, width = example.picture.shape[:2]
    resized = resize_short_side(example.picture, min(REGION_THUMBNAIL_PIXELS, height, width))
    scale = np.array([resized.shape[1] / width, resized.shape[0] / height] * 2, np.float32)
    return example._replace(picture=resized, boxes=example.boxes * scale)


def format_token_attention(example: AttentionExample, layer: CoAttentionWeights) -> str:
    """The image shaded by the attention of each token."""
    figures = []
    for word in example.shown:
        weights, name = layer.words[word], example.pieces[word]
        best = f"best {weights[1:].max(initial=0.0):.3f}, whole image {weights[0]:.3f}"
        figures.append(
            f"<figure>{embed_photo(render_attention_png(example, weights[1:]), name)}"
            f"<figcaption><b>{html.escape(name)}</b><br/>{best}</figcaption></figure>"
        )
    return f'<div class="row">{"".join(figures)}</div>'


def format_region_attention(example: AttentionExample, layer: CoAttentionWeights, row: int) -> str:
    """One region, and its attention to each token."""
    name = f"region {row}" if row else "the whole image"
    cells = "".join(
        f'<tr><td>{html.escape(piece)}</td><td class="number">{weight:.3f}</td>'
        f'<td><div class="bar"><span style="width:{100 * weight:.1f}%"></span></div></td></tr>'
        for piece, weight in zip(example.pieces, layer.regions[row].tolist(), strict=True)
    )
    head = f"<tr><th>word</th><th>attention of {name}</th><th></th></tr>"
    lit_alone = render_attention_png(example, np.eye(len(example.boxes))[row - 1]) if row else example.picture
    shown = f"<figure>{embed_photo(lit_alone, name)}<figcaption>{name}</figcaption></figure>"
    return f'<div class="row">{shown}<div><table>{head}{cells}</table></div></div>'


def select_region_row(example: AttentionExample, layer: CoAttentionWeights) -> int:
    """The grounded region, or else the one with the highest attention from the shown tokens; 0 is the whole image."""
    if example.pointed is None:
        return 1 + int(layer.words[example.shown, 1:].mean(0).argmax())
    found = (example.boxes == np.array(example.pointed, example.boxes.dtype)).all(1)
    return 1 + int(found.argmax()) if found.any() else 0


def render_attention_png(example: AttentionExample, attention: Float[np.ndarray, "regions"]) -> np.ndarray:
    """The shaded image as bytes."""
    return (shade_by_attention(example, attention) * 255).round().astype(np.uint8)
