"""The part of a report about L3-Net's units: what fires them, and how they go with classes (L3-Net, section 4.4)."""

import html
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from comodal.analysis.heatmaps import lit, spectrum_picture
from comodal.analysis.layer_activations import POOL4, TowerInput, map_of, picture_side, sound_side, strongest
from comodal.analysis.pages.html_page import photograph, player, section
from comodal.analysis.unit_activations import ClipMoments, UnitActivation, heat_maps, rank_units
from comodal.analysis.unit_selectivity import HIGH, SYSTEMS, TOP, SelectivityStudy, study_units
from comodal.hardware import device_of
from comodal.media.image import resize_short_side
from comodal.models.l3net.l3net import L3Net

SHOWN = 6  # of each unit, its strongest moments
UNITS = {POOL4: 8, "conv3_2": 4, "conv2_2": 4}  # how many units of which layers
THUMBNAIL = 112  # pixels
Cells = Callable[[TowerInput, str, UnitActivation], list[str]]


def unit_parts(model: L3Net, moments: ClipMoments, seed: int = 0) -> list[str]:
    """What fires the units, and, if the moments have labels of several classes, how they go with them."""
    about = (
        f"Of {{}}, the units that stand out most, each with its strongest of {len(moments.names)} held-out moments, "
        "bright where the unit fires."
    )
    pictures = gallery(picture_side(model), moments.image, image_cells(moments))
    sounds = gallery(sound_side(model), moments.sound, sound_cells(model, moments))
    parts = [
        section("What single units see", about.format("pool4 of the picture tower"), pictures),
        section("What single units hear", about.format("pool4 of the sound tower"), sounds),
    ]
    if len(set(moments.labels)) > 1:
        parts.append(study_part(study_units(model, moments, seed)))
    return parts


def gallery(side: TowerInput, inputs: Tensor, cells: Cells) -> str:
    """Rows of units of pool4, and of some other layers folded away."""
    activations, shown = strongest(side, inputs), ""
    for layer, count in UNITS.items():
        rows = "".join(
            f'<div class="row"><b>unit {unit.channel}</b>{"".join(cells(side, layer, unit))}</div>'
            for unit in rank_units(activations[layer], count, SHOWN)
        )
        shown += rows if layer == POOL4 else f"<details><summary>Units of {layer}</summary>{rows}</details>"
    return shown


def image_cells(moments: ClipMoments) -> Cells:
    """The strongest pictures of a unit, lit where it fires."""

    def cells(side: TowerInput, layer: str, unit: UnitActivation) -> list[str]:
        size = moments.image.shape[2]
        heat = heat_maps(map_of(side, layer), moments.image, unit, (size, size))
        return [
            cell(photograph(enlarged_picture(moments.image[moment], warmth), name), name)
            for moment, warmth, name in zip(unit.moments.tolist(), heat, names(moments, unit), strict=True)
        ]

    return cells


def enlarged_picture(image: Tensor, warmth: np.ndarray) -> np.ndarray:
    """A picture of the network as a lit thumbnail."""
    return resize_short_side(lit(image.permute(1, 2, 0).numpy(), warmth), THUMBNAIL)


def sound_cells(model: L3Net, moments: ClipMoments) -> Cells:
    """Spectrograms of a unit's strongest seconds, lit where it fires, each to be heard."""

    def cells(side: TowerInput, layer: str, unit: UnitActivation) -> list[str]:
        sounds = moments.sound[torch.from_numpy(unit.moments)]
        with torch.inference_mode():
            spectra = model.spectrogram(sounds.to(device_of(model)))[:, 0].cpu().numpy()
        heat = heat_maps(map_of(side, layer), moments.sound, unit, spectra.shape[1:])
        return [
            cell(
                photograph(spectrum_picture(spectrum, warmth, THUMBNAIL, THUMBNAIL), name)
                + player(sound.numpy(), model.config.sample_rate),
                name,
            )
            for sound, spectrum, warmth, name in zip(sounds, spectra, heat, names(moments, unit), strict=True)
        ]

    return cells


def names(moments: ClipMoments, unit: UnitActivation) -> list[str]:
    return [moments.names[moment] for moment in unit.moments.tolist()]


def cell(body: str, name: str) -> str:
    return f"<figure>{body}<figcaption>{html.escape(name[:24])}</figcaption></figure>"


def study_part(studies: dict[str, SelectivityStudy]) -> str:
    """The table over the layers of both towers, each number beside an untrained network and shuffled labels."""
    any_study = next(iter(studies.values()))
    text = (
        f"No class was ever told; do units go with the {len(any_study.classes)} classes of {any_study.moments} "
        "held-out moments all the same? Each number: trained | untrained | trained, but with shuffled labels. NMI is "
        "normalised mutual information with the classes: of k-means clusters of all units, of single units (on for "
        f"their strongest moments) in the mean, and of the best one. A unit has a high preference if {HIGH:.0%} of its "
        f"{TOP} strongest moments are of one class. The paper, on Kinetics-Sounds: clusters 0.409 of pictures "
        "(untrained 0.204) and 0.330 of sounds (0.219); 10 and 11 of 34 classes preferred (1 and 1)."
    )
    head = (
        "<tr><th>layer</th><th>NMI of clusters</th><th>NMI of units</th><th>best unit</th>"
        "<th>units with a high preference</th><th>classes preferred</th></tr>"
    )
    tables = [f"<h3>{html.escape(name)}s</h3><table>{head}{rows(study)}</table>" for name, study in studies.items()]
    return section("Do units go with classes?", text, "".join(tables))


def rows(study: SelectivityStudy) -> str:
    """One row for each layer."""
    lines = []
    for layer, trained in study.systems["trained"].items():
        found = [study.systems[system][layer] for system in SYSTEMS]
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
