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
from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_store import Regions, RegionStore
from comodal.data.sources.image_folder import find_image_files
from comodal.errors import DataError
from comodal.hardware import get_module_device
from comodal.media.image import read_image
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import find_model_folder
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.streams import UnimodalEncoding, ViLBERTOutput
from comodal.models.vilbert.transformer import record_attention
from comodal.models.vilbert.vilbert import ViLBERT

MAX_SHOWN_REGIONS = 36
NUM_SHOWN_TOKENS = 4  # in the row of an image; more follow below
MIN_ATTENTION_BRIGHTNESS = 0.15  # brightness of an image where the attention is zero


class CoAttentionWeights(NamedTuple):
    """The weights of a co-attention layer, averaged over its heads. Row 0 of the regions is the whole image."""

    token_to_region: Float[np.ndarray, "tokens rows"]  # of each token to the regions
    region_to_token: Float[np.ndarray, "rows tokens"]  # of each region to the tokens


class AttentionExample(NamedTuple):
    """An image with a text, and the co-attention between its tokens and its regions."""

    text: str
    prediction: str  # the model's prediction
    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "regions 4"]
    tokens: list[str]
    layers: list[CoAttentionWeights]
    token_indices: list[int]  # indices of the tokens that are drawn, in text order
    grounded_box: tuple[float, ...] | None = None  # the grounded box, where the model predicts one


def select_attention_examples(
    model: ViLBERT, run: Path, regions: Path, captions: Path, images: Path, count: int = 4
) -> list[AttentionExample]:
    """Selects held-out images, each with its first caption and the tokens that attend to regions most.

    Raises:
        DataError: A file is missing, or captions, regions and images do not match.
    """
    if model.config.num_visual_tokens:
        raise DataError(f"{run}: attention is drawn only for models on region features, not on visual tokens")
    check_co_attention(model, run)
    store, tokenizer = RegionStore(regions), WordPieceTokenizer.read(find_model_folder(run))
    parts = split_matched_captions(match_captions(read_captions(captions), store.ids).pairs, store.ids, 0.1, 0.1)
    files = index_image_files(images)
    first_captions = {row: caption for caption, row in reversed(parts["test"] or parts["validation"] or parts["train"])}
    examples = []
    for row, caption in list(first_captions.items())[::-1][:count]:
        if store.ids[row] not in files:
            raise DataError(f"{images} has no image named {store.ids[row]}, which {regions} contains")
        token_ids, image = tokenizer.encode(caption.caption), read_image(files[store.ids[row]])
        image_regions = store.read_regions(row)
        output, layers = compute_co_attention(model, token_ids, encode_image_regions(model, image_regions))
        with torch.inference_mode():
            match_probability = float(model.alignment_head(output.pooled_text, output.pooled_vision).softmax(-1)[0, 0])
        names = [tokenizer.vocabulary[token_id] for token_id in token_ids]
        boxes, prediction = (
            image_regions.boxes[:MAX_SHOWN_REGIONS],
            f"probability of alignment: {match_probability:.2f}",
        )
        examples.append(
            AttentionExample(
                caption.caption, prediction, image, boxes, names, layers, select_attentive_tokens(names, layers[-1])
            )
        )
    return examples


def index_image_files(images: Path) -> dict[str, Path]:
    """The images of a folder or of containers, by name without suffix, with and without the folder."""
    root, image_names, _ = find_image_files(images)
    files = {name.rpartition(".")[0]: root / name for name in image_names}
    return files | {Path(stem).name: path for stem, path in files.items()}


def check_co_attention(model: ViLBERT | SingleStream, run: Path) -> None:
    """Raises a DataError if the model has no co-attention between tokens and regions."""
    if isinstance(model, SingleStream) or not model.config.co_attention or not model.config.co_attention_layers:
        raise DataError(f"{run} has no co-attention, so there is no attention between tokens and regions to draw")


@torch.inference_mode()
def encode_image_regions(model: ViLBERT, regions: Regions) -> UnimodalEncoding:
    """The unimodal encoding of the regions of an image by the vision stream."""
    features, spatials = (torch.from_numpy(part)[None] for part in prepend_full_image(regions, MAX_SHOWN_REGIONS))
    return model.encode_image(features.to(get_module_device(model)), spatials.to(get_module_device(model)), None)


@torch.inference_mode()
def compute_co_attention(
    model: ViLBERT | SingleStream,
    token_ids: Sequence[int],
    vision: UnimodalEncoding,
    token_types: Sequence[int] | None = None,
) -> tuple[ViLBERTOutput, list[CoAttentionWeights]]:
    """The output for a text (or two texts, distinguished by segments) with an image, and the weights of each
    co-attention layer, in the precision of the model's weights.
    """
    assert isinstance(model, ViLBERT), "check_co_attention comes first"
    input_ids = torch.tensor([list(token_ids)], device=get_module_device(model))
    token_type_ids = (
        torch.zeros_like(input_ids)
        if token_types is None
        else torch.tensor([list(token_types)], device=input_ids.device)
    )
    text = model.encode_text(input_ids, token_type_ids, None)
    with record_attention(model) as maps:
        output = model.fuse(text, vision._replace(hidden_states=vision.hidden_states.to(text.hidden_states.dtype)))
    means = {
        name: weights[0].mean(0).float().cpu().numpy()
        for name, weights in maps.items()
        if name.startswith("co_layers.")
    }
    sides = ("text", "vision")
    layers = [[means[f"co_layers.{i}.{side}.attention"] for side in sides] for i in range(len(model.co_layers))]
    return output, [CoAttentionWeights(*pair) for pair in layers]


def draw_attention(examples: Sequence[AttentionExample], layer: int = -1) -> Figure:
    """For each example the image with its boxes, and the image shaded by the attention of its tokens in one layer."""
    lines = [-(-max(1, len(example.token_indices)) // NUM_SHOWN_TOKENS) for example in examples]
    figure = Figure(figsize=(2.2 * (NUM_SHOWN_TOKENS + 1), 2.6 * sum(lines)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(sum(lines), NUM_SHOWN_TOKENS + 1, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for example, end, count in zip(examples, np.cumsum(lines), lines, strict=True):
        rows = grid[end - count : end]
        draw_boxes(rows[0, 0], example)
        title = escape_plot_text(f"{wrap_caption(example.text)}\n{example.prediction}")
        rows[0, 0].set_title(title, fontsize=7, loc="left")
        for axes, token_index in zip(rows[:, 1:].flat, example.token_indices, strict=False):
            weights = example.layers[layer].token_to_region[token_index]
            axes.imshow(shade_by_attention(example, weights[1:]))
            name = escape_plot_text(example.tokens[token_index])
            axes.set_title(f"{name}: {weights[1:].max(initial=0.0):.2f}", fontsize=9)
            axes.text(
                0.5, -0.02, f"whole image {weights[0]:.2f}", fontsize=7, ha="center", va="top", transform=axes.transAxes
            )
    return figure


def draw_boxes(axes: Axes, example: AttentionExample) -> None:
    """The image with its regions; the box that the model grounds to is highlighted."""
    axes.imshow(example.image)
    for box in example.boxes:
        draw_box_outline(axes, box)
    if example.grounded_box is not None:
        draw_box_outline(axes, np.array(example.grounded_box), "#35d0ba", 3.0)


def select_attentive_tokens(tokens: list[str], layer: CoAttentionWeights) -> list[int]:
    """The word tokens that attend to a region more than the average token does, in text order."""
    attention = layer.token_to_region[:, 1:]
    word_indices = [i for i, token in enumerate(tokens) if token.isalpha() and len(token) > 2]
    excess = (attention - attention.mean(0)).max(1, initial=0.0)
    return sorted(sorted(word_indices, key=lambda i: -excess[i])[:NUM_SHOWN_TOKENS])


def shade_by_attention(
    example: AttentionExample, attention: Float[np.ndarray, "regions"]
) -> Float[np.ndarray, "height width 3"]:
    """The image, from 0 to 1, with brightness by attention. The region with the highest weight keeps its brightness."""
    brightness = np.full(example.image.shape[:2], MIN_ATTENTION_BRIGHTNESS)
    weights = attention / max(float(attention.max(initial=0.0)), 1e-9)
    for weight, (left, top, right, bottom) in zip(weights, example.boxes.round().astype(int).tolist(), strict=True):
        patch = brightness[top:bottom, left:right]
        np.maximum(patch, MIN_ATTENTION_BRIGHTNESS + (1 - MIN_ATTENTION_BRIGHTNESS) * weight, out=patch)
    return example.image / 255 * brightness[..., None]


def draw_box_outline(axes: Axes, box: Float[np.ndarray, "4"], color: str = "#d9a441", width: float = 1.0) -> None:
    left, top, right, bottom = box.tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=width))


def wrap_caption(text: str, width: int = 34) -> str:
    """A caption on a few short lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
