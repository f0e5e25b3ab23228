"""Attention between words and regions, drawn over the picture (ViLBERT, section 3.1: co-attention)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.data.caption_files import matched, read_captions, split_pairs
from comodal.data.captions import with_whole_image
from comodal.data.regions import Regions, RegionStore
from comodal.data.sources import walk
from comodal.errors import DataError
from comodal.media.image import read_image
from comodal.media.text import Words
from comodal.models.checkpoint import model_folder
from comodal.models.transformer import recorded_attention
from comodal.models.vilbert import ViLBERT

MAX_REGIONS = 36
WORDS_SHOWN = 4


class Example(NamedTuple):
    """A picture with a caption, and how much each of its word pieces attends to each region."""

    caption: str
    picture: UInt8[np.ndarray, "height width 3"]
    boxes: Float[np.ndarray, "regions 4"]
    pieces: list[str]
    attention: Float[np.ndarray, "words regions"]
    aligned: float  # probability that the two belong together


def examples(model: ViLBERT, run: Path, regions: Path, captions: Path, images: Path, count: int = 4) -> list[Example]:
    """Held-out pictures, each with its first caption.

    Raises:
        DataError: A file is missing, or captions, regions and images do not belong together.
    """
    if model.config.region_tokens or not model.config.co_attention or not model.config.schedule:
        raise DataError(f"{run}: attention is shown of models that see features of regions, with co-attention")
    store, words = RegionStore(regions), Words.read(model_folder(run))
    parts = split_pairs(matched(read_captions(captions), store.ids).pairs, store.ids, 0.1, 0.1)
    files = {name.rpartition(".")[0]: images / name for name in walk(images)}
    files |= {Path(stem).name: path for stem, path in files.items()}
    held_out = {row: caption for caption, row in reversed(parts["test"] or parts["validation"] or parts["train"])}
    shown = []
    for row, caption in list(held_out.items())[::-1][:count]:
        if store.ids[row] not in files:
            raise DataError(f"{images} has no image of the name {store.ids[row]}, which is in {regions}")
        pieces, picture = words.encode(caption.caption), read_image(files[store.ids[row]])
        inside = store.regions(row)
        attention, aligned = attend(model, pieces, inside)
        names = [words.vocabulary[piece] for piece in pieces]
        shown.append(Example(caption.caption, picture, inside.boxes[:MAX_REGIONS], names, attention, aligned))
    return shown


@torch.inference_mode()
def attend(model: ViLBERT, pieces: list[int], inside: Regions) -> tuple[Float[np.ndarray, "words regions"], float]:
    """Attention of words to regions in the last co-attention layer (mean of heads, whole image left out), and
    P(aligned)."""
    features, places = (torch.from_numpy(part)[None] for part in with_whole_image(inside, MAX_REGIONS))
    words = torch.tensor([pieces])
    with recorded_attention(model) as maps:
        output = model(
            words,
            torch.zeros_like(words),
            torch.ones_like(words, dtype=torch.bool),
            features,
            places,
            torch.ones(features.shape[:2], dtype=torch.bool),
        )
    name = max((name for name in maps if name.startswith("co_layers.") and ".text." in name), key=layer_of)
    aligned = model.alignment_head(output.text, output.vision).softmax(-1)[0, 0]
    return maps[name][0].mean(0)[:, 1:].numpy(), float(aligned)


def layer_of(name: str) -> int:
    """The number in co_layers.NUMBER.text.attention."""
    return int(name.split(".")[1])


def draw_attention(shown: list[Example]) -> Figure:
    """A row for each example: the picture with its boxes, and dimmed by the attention of its most decided words."""
    figure = Figure(figsize=(2.2 * (WORDS_SHOWN + 1), 2.6 * len(shown)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), WORDS_SHOWN + 1, squeeze=False)
    for row, example in zip(grid, shown, strict=True):
        for axes in row:
            axes.set_axis_off()
        row[0].imshow(example.picture)
        for box in example.boxes:
            outline(row[0], box)
        row[0].set_title(f"{wrapped(example.caption)}\nP(aligned) {example.aligned:.2f}", fontsize=7, loc="left")
        for axes, word in zip(row[1:], decided(example), strict=False):
            axes.imshow(lit(example, word))
            axes.set_title(f"{example.pieces[word]}: {example.attention[word].max():.2f}", fontsize=9)
    return figure


def decided(example: Example) -> list[int]:
    """The words (no special ones, no signs) that look at a region more than words do on average, in their order."""
    real = [i for i, piece in enumerate(example.pieces) if piece.isalpha() and len(piece) > 2]
    beyond = (example.attention - example.attention.mean(0)).max(1, initial=0.0)
    return sorted(sorted(real, key=lambda i: -beyond[i])[:WORDS_SHOWN])


def lit(example: Example, word: int) -> Float[np.ndarray, "height width 3"]:
    """The picture, dark but where the word looks."""
    light = np.full(example.picture.shape[:2], 0.15)
    weights = example.attention[word] / max(float(example.attention[word].max(initial=0.0)), 1e-9)
    for weight, (left, top, right, bottom) in zip(weights, example.boxes.round().astype(int).tolist(), strict=True):
        inside = light[top:bottom, left:right]
        np.maximum(inside, 0.15 + 0.85 * weight, out=inside)
    return example.picture / 255 * light[..., None]


def outline(axes: Axes, box: Float[np.ndarray, "4"]) -> None:
    left, top, right, bottom = box.tolist()
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#d9a441", linewidth=1))


def wrapped(text: str, width: int = 34) -> str:
    """A caption on a few short lines."""
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
