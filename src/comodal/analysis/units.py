"""What makes a unit of the last convolution fire: its strongest pictures and sounds, with heat maps (L3-Net, figures 4
and 5).

Units are ranked by how far their strongest examples stand above all others, so that units that are dead or fire for
everything come last.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F

from comodal.data.shards import Shards
from comodal.errors import DataError
from comodal.media.audio import decode_flac
from comodal.media.image import centre_crop, decode_jpeg, resize_short_side
from comodal.models.l3net import L3Net

BATCH = 8


@dataclass(frozen=True)
class Moments:
    """One frame of each of many clips, and the second of sound around it."""

    image: UInt8[Tensor, "moments 3 size size"]
    sound: Float[Tensor, "moments samples"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """One channel: the moments at which it fires most, strongest first, and how strongly."""

    channel: int
    moments: Int[np.ndarray, " top"]
    strengths: Float[np.ndarray, " top"]


def read_moments(shards: Path, model: L3Net, count: int) -> Moments:
    """The middle of equally spaced clips of a split."""
    opened, config = Shards(shards), model.config
    images, sounds, names = [], [], []
    for clip in np.unique(np.linspace(0, len(opened) - 1, min(count, len(opened))).round().astype(int)).tolist():
        record = opened.record(clip)
        middle = len(record["frames"]) // 2
        short_side = round(config.image_size * 8 / 7)
        image = decode_jpeg(opened.read(clip, record["frames"][middle]), min_short_side=short_side)
        images.append(centre_crop(resize_short_side(image, short_side), config.image_size))
        latest = max(0.0, record["seconds"] - config.sound_seconds)
        start = min(max(0.0, record["frame_seconds"][middle] - config.sound_seconds / 2), latest)
        sound, sample_rate = decode_flac(opened.read(clip, "flac"), start, config.sound_seconds)
        if sample_rate != config.sample_rate:
            raise DataError(f"{shards}: sound of {sample_rate} samples a second; the model hears {config.sample_rate}")
        sounds.append(np.pad(sound, (0, round(config.sound_seconds * sample_rate) - len(sound))))
        names.append(str(record.get("label", record["key"])))
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return Moments(pixels, torch.from_numpy(np.stack(sounds)), tuple(names))


@torch.inference_mode()
def strongest(feature_map: Callable[[Tensor], Tensor], inputs: Tensor) -> Float[np.ndarray, "moments channels"]:
    """The largest value of each channel anywhere in its map, for each input."""
    return torch.cat([feature_map(part).amax((2, 3)) for part in inputs.split(BATCH)]).float().numpy()


def rank_units(activations: Float[np.ndarray, "moments channels"], units: int, top: int) -> list[Unit]:
    """The units whose `top` strongest moments lie furthest above their mean, in deviations."""
    order = np.argsort(-activations, axis=0, kind="stable")[:top]
    deviation = activations.std(0)
    above = np.take_along_axis(activations, order, axis=0).mean(0) - activations.mean(0)
    score = np.divide(above, deviation, out=np.zeros_like(above), where=deviation > 0)
    chosen = np.argsort(-score, kind="stable")[:units]
    return [Unit(int(c), order[:, c], activations[order[:, c], c]) for c in chosen]


@torch.inference_mode()
def heat_maps(
    feature_map: Callable[[Tensor], Tensor], inputs: Tensor, unit: Unit, size: tuple[int, int]
) -> Float[np.ndarray, "top height width"]:
    """Where the unit fires in each of its moments, scaled up to the size of the input; 1 where it fires most."""
    found = feature_map(inputs[torch.from_numpy(unit.moments)])[:, unit.channel : unit.channel + 1].float()
    large = F.interpolate(found, size=size, mode="bilinear", align_corners=False)[:, 0].clamp(min=0.0)
    return (large / large.amax((1, 2), keepdim=True).clamp(min=1e-12)).numpy()


def draw_image_units(model: L3Net, moments: Moments, units: int = 6, top: int = 6) -> Figure:
    """A row for each unit of the picture tower: its strongest pictures, lit where it fires."""
    ranked = rank_units(strongest(model.image_map, moments.image), units, top)
    size = moments.image.shape[2]
    figure, grid = canvas(len(ranked), top, 1.0)
    for row, unit in zip(grid, ranked, strict=True):
        heat = heat_maps(model.image_map, moments.image, unit, (size, size))
        for axes, moment, warmth in zip(row, unit.moments, heat, strict=False):
            picture = moments.image[int(moment)].permute(1, 2, 0).numpy()
            lit = picture / 255.0 * (0.35 + 0.65 * warmth[..., None])
            axes.imshow(lit)
            axes.contour(warmth, levels=[0.5], colors="#ffb000", linewidths=1.0)
            axes.set_title(moments.names[int(moment)][:18].replace("$", "\\$"), fontsize=7)
        row[0].text(-0.08, 0.5, f"unit {unit.channel}", rotation=90, va="center", ha="right",
                    transform=row[0].transAxes, fontsize=8)  # fmt: skip
    return figure


def draw_sound_units(model: L3Net, moments: Moments, units: int = 6, top: int = 6) -> Figure:
    """A row for each unit of the sound tower: spectrograms of its strongest seconds, outlined where it fires."""
    ranked = rank_units(strongest(model.sound_map, moments.sound), units, top)
    figure, grid = canvas(len(ranked), top, 0.8)
    for row, unit in zip(grid, ranked, strict=True):
        with torch.inference_mode():
            shown = model.spectrogram(moments.sound[torch.from_numpy(unit.moments)])[:, 0].numpy()
        heat = heat_maps(model.sound_map, moments.sound, unit, shown.shape[1:])
        for axes, moment, spectrum, warmth in zip(row, unit.moments, shown, heat, strict=False):
            axes.imshow(spectrum, origin="lower", aspect="auto", cmap="magma")
            axes.contour(warmth, levels=[0.5], colors="#35d0ba", linewidths=1.0)
            axes.set_title(moments.names[int(moment)][:18].replace("$", "\\$"), fontsize=7)
        row[0].text(-0.08, 0.5, f"unit {unit.channel}", rotation=90, va="center", ha="right",
                    transform=row[0].transAxes, fontsize=8)  # fmt: skip
    return figure


def canvas(rows: int, columns: int, height: float) -> tuple[Figure, np.ndarray]:
    """A figure of axes without ticks."""
    figure = Figure(figsize=(1.5 * columns + 0.3, 1.5 * height * rows + 0.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    return figure, grid
