"""The part of a report about L3-Net's units: what activates them, and class selectivity (L3-Net, section 4.4)."""

import html
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from comodal.analysis.heatmaps import render_spectrogram, shade_by_heat
from comodal.analysis.layer_activations import (
    POOL4,
    TowerInput,
    build_audio_tower_input,
    build_image_tower_input,
    compute_layer_map,
    max_channel_activations,
)
from comodal.analysis.pages.html_page import embed_audio_player, embed_photo, format_section
from comodal.analysis.unit_activations import ClipMoments, UnitActivation, compute_unit_heatmaps, rank_units
from comodal.analysis.unit_selectivity import (
    MIN_HIGH_PREFERENCE,
    NUM_TOP_MOMENTS,
    SELECTIVITY_SYSTEMS,
    SelectivityStudy,
    study_units,
)
from comodal.hardware import get_module_device
from comodal.media.image import resize_short_side
from comodal.models.l3net.l3net import L3Net

NUM_UNIT_EXAMPLES = 6  # moments per unit, those with the strongest activations
NUM_UNITS_BY_LAYER = {POOL4: 8, "conv3_2": 4, "conv2_2": 4}  # number of units per layer
UNIT_THUMBNAIL_PIXELS = 112  # side of a thumbnail, in pixels
Cells = Callable[[TowerInput, str, UnitActivation], list[str]]


def build_unit_parts(model: L3Net, moments: ClipMoments, seed: int = 0) -> list[str]:
    """Inputs that activate the units, and, if the moments have labels of several classes, class selectivity."""
    about = (
        f"Of {{}}, the units that stand out most, each with its strongest of {len(moments.names)} held-out moments, "
        "bright where the unit fires."
    )
    pictures = build_unit_gallery(build_image_tower_input(model), moments.image, make_image_cells(moments))
    sounds = build_unit_gallery(build_audio_tower_input(model), moments.sound, make_audio_cells(model, moments))
    parts = [
        format_section("What single units see", about.format("pool4 of the picture tower"), pictures),
        format_section("What single units hear", about.format("pool4 of the sound tower"), sounds),
    ]
    if len(set(moments.labels)) > 1:
        parts.append(build_selectivity_part(study_units(model, moments, seed)))
    return parts


def build_unit_gallery(side: TowerInput, inputs: Tensor, cells: Cells) -> str:
    """Rows of units of pool4, and of some other layers, collapsed."""
    activations, shown = max_channel_activations(side, inputs), ""
    for layer, count in NUM_UNITS_BY_LAYER.items():
        rows = "".join(
            f'<div class="row"><b>unit {unit.channel}</b>{"".join(cells(side, layer, unit))}</div>'
            for unit in rank_units(activations[layer], count, NUM_UNIT_EXAMPLES)
        )
        shown += rows if layer == POOL4 else f"<details><summary>Units of {layer}</summary>{rows}</details>"
    return shown


def make_image_cells(moments: ClipMoments) -> Cells:
    """The images with the strongest activations of a unit, shaded by its activation map."""

    def cells(side: TowerInput, layer: str, unit: UnitActivation) -> list[str]:
        size = moments.image.shape[2]
        heat = compute_unit_heatmaps(compute_layer_map(side, layer), moments.image, unit, (size, size))
        return [
            format_unit_cell(embed_photo(render_unit_thumbnail(moments.image[moment], warmth), name), name)
            for moment, warmth, name in zip(unit.moments.tolist(), heat, list_moment_names(moments, unit), strict=True)
        ]

    return cells


def render_unit_thumbnail(image: Tensor, warmth: np.ndarray) -> np.ndarray:
    """An input image of the network as a shaded thumbnail."""
    return resize_short_side(shade_by_heat(image.permute(1, 2, 0).numpy(), warmth), UNIT_THUMBNAIL_PIXELS)


def make_audio_cells(model: L3Net, moments: ClipMoments) -> Cells:
    """Spectrograms of a unit's strongest seconds, shaded by its activation map, each with an audio player."""

    def cells(side: TowerInput, layer: str, unit: UnitActivation) -> list[str]:
        sounds = moments.sound[torch.from_numpy(unit.moments)]
        with torch.inference_mode():
            spectra = model.spectrogram(sounds.to(get_module_device(model)))[:, 0].cpu().numpy()
        heat = compute_unit_heatmaps(compute_layer_map(side, layer), moments.sound, unit, spectra.shape[1:])
        return [
            format_unit_cell(
                embed_photo(render_spectrogram(spectrum, warmth, UNIT_THUMBNAIL_PIXELS, UNIT_THUMBNAIL_PIXELS), name)
                + embed_audio_player(sound.numpy(), model.config.sample_rate),
                name,
            )
            for sound, spectrum, warmth, name in zip(
                sounds, spectra, heat, list_moment_names(moments, unit), strict=True
            )
        ]

    return cells


def list_moment_names(moments: ClipMoments, unit: UnitActivation) -> list[str]:
    return [moments.names[moment] for moment in unit.moments.tolist()]


def format_unit_cell(body: str, name: str) -> str:
    return f"<figure>{body}<figcaption>{html.escape(name[:24])}</figcaption></figure>"


def build_selectivity_part(studies: dict[str, SelectivityStudy]) -> str:
    """The table over the layers of both towers, compared with an untrained network and with shuffled labels."""
    any_study = next(iter(studies.values()))
    text = (
        f"No class was ever told; do units go with the {len(any_study.classes)} classes of {any_study.moments} "
        "held-out moments all the same? Each number: trained | untrained | trained, but with shuffled labels. NMI is "
        "normalised mutual information with the classes: of k-means clusters of all units, of single units (on for "
        f"their strongest moments) in the mean, and of the best one. A unit has a high preference if "
        f"{MIN_HIGH_PREFERENCE:.0%} of its {NUM_TOP_MOMENTS} strongest moments are of one class. "
        "The paper, on Kinetics-Sounds: clusters 0.409 of images (untrained 0.204) and 0.330 of audio (0.219); "
        "10 and 11 of 34 classes preferred (1 and 1)."
    )
    head = (
        "<tr><th>layer</th><th>NMI of clusters</th><th>NMI of units</th><th>best unit</th>"
        "<th>units with a high preference</th><th>classes preferred</th></tr>"
    )
    tables = [
        f"<h3>{html.escape(name)}s</h3><table>{head}{format_layer_rows(study)}</table>"
        for name, study in studies.items()
    ]
    return format_section("Do units go with classes?", text, "".join(tables))


def format_layer_rows(study: SelectivityStudy) -> str:
    """One row for each layer."""
    lines = []
    for layer, trained in study.systems["trained"].items():
        found = [study.systems[system][layer] for system in SELECTIVITY_SYSTEMS]
        cells = [
            " | ".join(f"{one.clusters_nmi:.3f}" for one in found),
            " | ".join(f"{one.units_nmi:.3f}" for one in found),
            " | ".join(f"{one.best_nmi:.3f}" for one in found),
            " | ".join(str(one.preferring) for one in found) + f" of {trained.units}",
            " | ".join(str(one.preferred) for one in found) + f" of {len(study.classes)}",
        ]
        kind = "trained" if layer == POOL4 else "layer"
        name = "conv4_2 (pool4)" if layer == POOL4 else layer
        numbers = "".join(f'<td class="number">{number}</td>' for number in cells)
        lines.append(f'<tr class="{kind}"><td>{name}</td>{numbers}</tr>')
    return "".join(lines)
