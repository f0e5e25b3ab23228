"""Co-attention between tokens and regions, drawn over the image (ViLBERT, section 3.1)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.console import escape_plot_text
from comodal.data.captions.caption_dataset import prepend_whole_image
from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_store import Regions, RegionStore
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import DataError
from comodal.hardware import get_module_device
from comodal.media.image import read_image
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import find_model_folder
from comodal.models.vilbert.streams import UnimodalEncoding, ViLBERTOutput
from comodal.models.vilbert.transformer import record_attention
from comodal.models.vilbert.vilbert import ViLBERT

MAX_SHOWN_REGIONS = 36
NUM_SHOWN_TOKENS = 4  # in the row of an image; more follow below
MIN_ATTENTION_BRIGHTNESS = 0.15  # brightness of an image where the attention is zero


class CoAttentionWeights(NamedTuple):
    """The weights of a co-attention layer, averaged over its heads. Row 0 of the regions is the whole image."""

    words: Float[np.ndarray, "words rows"]  # of each token to the regions
    regions: Float[np.ndarray, "rows words"]  # of each region to the tokens


class AttentionExample(NamedTuple):
    """An image with a text, and the co-attention between its tokens and its regions."""

    text: str
    told: str  # the model's prediction
    picture: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "regions 4"]
    pieces: list[str]
    layers: list[CoAttentionWeights]
    shown: list[int]  # indices of the tokens that are drawn, in text order
    pointed: tuple[float, ...] | None = None  # the grounded box, where the model predicts one


def select_attention_examples(
    model: ViLBERT, run: Path, regions: Path, captions: Path, images: Path, count: int = 4
) -> list[AttentionExample]:
    """Selects held-out images, each with its first caption and the tokens that attend to regions most.

    Raises:
        DataError: A file is missing, or captions, regions and images do not match.
    """
    if model.config.region_tokens:
        raise DataError(f"{run}: attention is shown of models that see features of regions, not visual tokens")
    check_co_attention(model, run)
    store, words = RegionStore(regions), WordPieceTokenizer.read(find_model_folder(run))
    parts = split_matched_captions(match_captions(read_captions(captions), store.ids).pairs, store.ids, 0.1, 0.1)
    files = index_image_files(images)
    held_out = {row: caption for caption, row in reversed(parts["test"] or parts["validation"] or parts["train"])}
    shown = []
    for row, caption in list(held_out.items())[::-1][:count]:
        if store.ids[row] not in files:
            raise DataError(f"{images} has no image of the name {store.ids[row]}, which is in {regions}")
        pieces, picture = words.encode(caption.caption), read_image(files[store.ids[row]])
        inside = store.regions(row)
        output, layers = compute_co_attention(model, pieces, encode_image_regions(model, inside))
        with torch.inference_mode():
            aligned = float(model.alignment_head(output.text, output.vision).softmax(-1)[0, 0])
        names = [words.vocabulary[piece] for piece in pieces]
        boxes, told = inside.boxes[:MAX_SHOWN_REGIONS], f"probability of alignment: {aligned:.2f}"
        shown.append(
            AttentionExample(
                caption.caption, told, picture, boxes, names, layers, select_attentive_tokens(names, layers[-1])
            )
        )
    return shown


def index_image_files(images: Path) -> dict[str, Path]:
    """The images of a folder or of containers, by name without suffix, with and without the folder."""
    root, pictures, _ = find_image_files(images)
    files = {name.rpartition(".")[0]: root / name for name in pictures}
    return files | {Path(stem).name: path for stem, path in files.items()}


def check_co_attention(model: ViLBERT, run: Path) -> None:
    """Raises a DataError if the model has no co-attention between tokens and regions."""
    if not model.config.co_attention or not model.config.schedule:
        raise DataError(f"{run} has no co-attention: no attention between words and regions that could be shown")


@torch.inference_mode()
def encode_image_regions(model: ViLBERT, inside: Regions) -> UnimodalEncoding:
    """The unimodal encoding of the regions of an image by the vision stream."""
    features, places = (torch.from_numpy(part)[None] for part in prepend_whole_image(inside, MAX_SHOWN_REGIONS))
    return model.vision_prefix(features.to(get_module_device(model)), places.to(get_module_device(model)), None)


@torch.inference_mode()
def compute_co_attention(
    model: ViLBERT, pieces: Sequence[int], vision: UnimodalEncoding, segments: Sequence[int] | None = None
) -> tuple[ViLBERTOutput, list[CoAttentionWeights]]:
    """The output for a text (or two texts, distinguished by segments) with an image, and the weights of each
    co-attention layer, in the precision of the model's weights.
    """
    words = torch.tensor([list(pieces)], device=get_module_device(model))
    parts = torch.zeros_like(words) if segments is None else torch.tensor([list(segments)], device=words.device)
    text = model.text_prefix(words, parts, None)
    with record_attention(model) as maps:
        output = model.join(text, vision._replace(tokens=vision.tokens.to(text.tokens.dtype)))
    means = {
        name: weights[0].mean(0).float().cpu().numpy()
        for name, weights in maps.items()
        if name.startswith("co_layers.")
    }
    sides = ("text", "vision")
    layers = [[means[f"co_layers.{i}.{side}.attention"] for side in sides] for i in range(len(model.co_layers))]
    return output, [CoAttentionWeights(*pair) for pair in layers]


def draw_attention(shown: Sequence[AttentionExample], layer: int = -1) -> Figure:
    """For each example the image with its boxes, and the image shaded by the attention of its tokens in one layer."""
    lines = [-(-max(1, len(example.shown)) // NUM_SHOWN_TOKENS) for example in shown]
    figure = Figure(figsize=(2.2 * (NUM_SHOWN_TOKENS + 1), 2.6 * sum(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(sum(lines), NUM_SHOWN_TOKENS + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for example, end, count in zip(shown, np.cumsum(lines), lines, strict=True):
        rows = grid[end - count : end]
        draw_boxes(rows[0, 0], example)
        told = escape_plot_text(f"{wrap_caption(example.text)}\n{example.told}")
        rows[0, 0].set_title(told, fontsize=7, loc="left")
        for axes, word in zip(rows[:, 1:].flat, example.shown, strict=False):
            weights = example.layers[layer].words[word]
            axes.imshow(shade_by_attention(example, weights[1:]))
            name = escape_plot_text(example.pieces[word])
            axes.set_title(f"{name}: {weights[1:].max(initial=0.0):.2f}", fontsize=9)
            axes.text(
                0.5, -0.02, f"whole image {weights[0]:.2f}", fontsize=7, ha="center", va="top", transform=axes.transAxes
            )
    return figure


def draw_boxes(axes: Axes, example: AttentionExample) -> None:
    """The image with its regions; the box that the model grounds to is highlighted."""
    axes.imshow(example.picture)
    for box in example.boxes:
        draw_box_outline(axes, box)
    if example.pointed is not None:
        draw_box_outline(axes, np.array(example.pointed), "#35d0ba", 3.0)


def select_attentive_tokens(pieces: list[str], layer: CoAttentionWeights) -> list[int]:
    """The word tokens that attend to a region more than the average token does, in text order."""
    attention = layer.words[:, 1:]
    real = [i for i, piece in enumerate(pieces) if piece.isalpha() and len(piece) > 2]
    beyond = (attention - attention.mean(0)).max(1, initial=0.0)
    return sorted(sorted(real, key=lambda i: -beyond[i])[:NUM_SHOWN_TOKENS])


def shade_by_attention(
    example: AttentionExample, attention: Float[np.ndarray, "regions"]
) -> Float[np.ndarray, "height width 3"]:
    """The image, from 0 to 1, with brightness by attention. The region with the highest weight keeps its brightness."""
    light = np.full(example.picture.shape[:2], MIN_ATTENTION_BRIGHTNESS)
    weights = attention / max(float(attention.max(initial=0.0)), 1e-9)
    for weight, (left, top, right, bottom) in zip(weights, example.boxes.round().astype(int).tolist(), strict=True):
        inside = light[top:bottom, left:right]
        np.maximum(inside, MIN_ATTENTION_BRIGHTNESS + (1 - MIN_ATTENTION_BRIGHTNESS) * weight, out=inside)
    return example.picture / 255 * light[..., None]


def draw_box_outline(axes: Axes, box: Float[np.ndarray, "4"], colour: str = "#d9a441", width: float = 1.0) -> None:
    left, top, right, bottom = box.tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width))


def wrap_caption(text: str, width: int = 34) -> str:
    """A caption on a few short lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
