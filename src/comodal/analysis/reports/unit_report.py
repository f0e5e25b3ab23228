"""The sections of a report about L3-Net's units: what activates them, and class selectivity (L3-Net, section 4.4)."""

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
from comodal.analysis.pages.page_parts import (
    PageBlock,
    PageColumn,
    PageDetails,
    PageImage,
    PageImageRow,
    PageRow,
    PageSection,
    PageTable,
    embed_figure,
    encode_audio_uri,
    encode_photo_uri,
)
from comodal.analysis.tsne import MIN_TSNE_EXAMPLES, compute_tsne, draw_tsne
from comodal.analysis.unit_activations import ClipExamples, UnitActivation, compute_unit_heatmaps
from comodal.analysis.unit_selectivity import (
    MIN_HIGH_PREFERENCE,
    NUM_TOP_EXAMPLES,
    SELECTIVITY_SYSTEMS,
    SelectiveUnit,
    SelectivityStudy,
    select_units,
    study_units,
)
from comodal.hardware import get_module_device
from comodal.media.image import resize_short_side
from comodal.models.l3net.l3net import L3Net

NUM_UNIT_EXAMPLES = 6  # examples per unit, those with the strongest activations
NUM_UNITS_BY_LAYER = {POOL4: 8, "conv3_2": 4, "conv2_2": 4}  # number of units per layer
UNIT_THUMBNAIL_PIXELS = 112  # side of a thumbnail, in pixels
STUDY_TITLES = {"image": "Image tower", "audio": "Audio tower"}
SELECTIVITY_COLUMNS = (
    PageColumn("layer"),
    PageColumn("NMI of clusters", "number"),
    PageColumn("NMI of units, mean", "number"),
    PageColumn("NMI of the best unit", "number"),
    PageColumn("units with a high preference", "number"),
    PageColumn("classes preferred", "number"),
)
Cells = Callable[[TowerInput, str, UnitActivation], list[PageImage]]


def build_unit_parts(model: L3Net, examples: ClipExamples, seed: int = 0) -> list[PageSection]:
    """Inputs that activate the units, and, if the examples have labels of several classes, class selectivity."""
    text = (
        f"Each row is a unit of pool4 of the {{}} tower with the strongest of {len(examples.names)} held-out examples. "
        "Brightness follows the unit's activation map."
    )
    if examples.labels:
        text += (
            " The most selective unit of each class comes first; labels only select the units, and no label was used "
            f"in training. The note counts the examples of that class among the unit's {NUM_TOP_EXAMPLES} strongest."
        )
    images = build_unit_gallery(
        build_image_tower_input(model), examples.image, examples.labels, make_image_cells(examples)
    )
    audio = build_unit_gallery(
        build_audio_tower_input(model), examples.audio, examples.labels, make_audio_cells(model, examples)
    )
    sections = [
        PageSection("Units of the image tower", text.format("image"), images),
        PageSection("Units of the audio tower", text.format("audio"), audio),
    ]
    if len(set(examples.labels)) > 1:
        sections.append(build_selectivity_part(study_units(model, examples, seed)))
        if len(examples.labels) >= MIN_TSNE_EXAMPLES:
            sections.append(build_tsne_part(model, examples, seed))
    return sections


def build_tsne_part(model: L3Net, examples: ClipExamples, seed: int) -> PageSection:
    """The examples in a plane by the features of each tower."""
    activations = {
        "image tower": max_channel_activations(build_image_tower_input(model), examples.image)[POOL4],
        "audio tower": max_channel_activations(build_audio_tower_input(model), examples.audio)[POOL4],
    }
    positions = {name: compute_tsne(values, seed) for name, values in activations.items()}
    text = (
        f"The {len(examples.labels)} held-out examples in a plane by t-SNE of the features of each tower (pool4, "
        "standardized). Colors are the classes, which no training has seen. Only who is next to whom has a meaning."
    )
    figure = embed_figure(draw_tsne(positions, examples.labels), "examples in a plane by t-SNE, colored by class")
    numbers = {name: points.round(4).tolist() for name, points in positions.items()}
    return PageSection("t-SNE of embeddings", text, [figure], {"labels": list(examples.labels), **numbers})


def build_unit_gallery(
    tower_input: TowerInput, inputs: Tensor, labels: tuple[str, ...], cells: Cells
) -> list[PageBlock]:
    """Rows of units of pool4, and of some other layers, collapsed."""
    activations = max_channel_activations(tower_input, inputs)
    blocks: list[PageBlock] = []
    for layer, count in NUM_UNITS_BY_LAYER.items():
        rows = [
            PageImageRow(
                cells(tower_input, layer, unit.activation),
                f"unit {unit.activation.channel}",
                describe_preference(unit, len(inputs)),
            )
            for unit in select_units(activations[layer], labels, count, NUM_UNIT_EXAMPLES)
        ]
        blocks += rows if layer == POOL4 else [PageDetails(f"Units of {layer}", rows)]
    return blocks


def describe_preference(unit: SelectiveUnit, examples: int) -> str:
    """The class that a unit prefers, with its count among the unit's strongest examples."""
    top = min(NUM_TOP_EXAMPLES, examples)
    return f"{unit.preferred}: {round(unit.preference * top)} of {top}" if unit.preferred else ""


def make_image_cells(examples: ClipExamples) -> Cells:
    """The images with the strongest activations of a unit, shaded by its activation map."""

    def cells(tower_input: TowerInput, layer: str, unit: UnitActivation) -> list[PageImage]:
        size = examples.image.shape[2]
        heat = compute_unit_heatmaps(compute_layer_map(tower_input, layer), examples.image, unit, (size, size))
        shaded = [
            render_unit_thumbnail(examples.image[example], unit_heat)
            for example, unit_heat in zip(unit.examples.tolist(), heat, strict=True)
        ]
        names = list_example_names(examples, unit)
        return [
            PageImage(f"image of {name}", encode_photo_uri(image), caption=name)
            for image, name in zip(shaded, names, strict=True)
        ]

    return cells


def render_unit_thumbnail(image: Tensor, heat: np.ndarray) -> np.ndarray:
    """An input image of the network as a shaded thumbnail."""
    return resize_short_side(shade_by_heat(image.permute(1, 2, 0).numpy(), heat), UNIT_THUMBNAIL_PIXELS)


def make_audio_cells(model: L3Net, examples: ClipExamples) -> Cells:
    """Spectrograms of a unit's strongest seconds, shaded by its activation map, each with an audio player."""

    def cells(tower_input: TowerInput, layer: str, unit: UnitActivation) -> list[PageImage]:
        waveforms = examples.audio[torch.from_numpy(unit.examples)]
        with torch.inference_mode():
            spectra = model.spectrogram(waveforms.to(get_module_device(model)))[:, 0].cpu().numpy()
        heat = compute_unit_heatmaps(compute_layer_map(tower_input, layer), examples.audio, unit, spectra.shape[1:])
        size = (UNIT_THUMBNAIL_PIXELS, UNIT_THUMBNAIL_PIXELS)
        return [
            PageImage(
                f"audio of {name}",
                encode_photo_uri(render_spectrogram(spectrum, unit_heat, *size)),
                caption=name,
                audio=encode_audio_uri(waveform.numpy(), model.config.sample_rate),
            )
            for waveform, spectrum, unit_heat, name in zip(
                waveforms, spectra, heat, list_example_names(examples, unit), strict=True
            )
        ]

    return cells


def list_example_names(examples: ClipExamples, unit: UnitActivation) -> list[str]:
    return [examples.names[example] for example in unit.examples.tolist()]


def build_selectivity_part(studies: dict[str, SelectivityStudy]) -> PageSection:
    """The table over the layers of both towers, compared with an untrained network and with shuffled labels."""
    any_study = next(iter(studies.values()))
    text = (
        f"Selectivity for the {len(any_study.classes)} classes of {any_study.examples} held-out examples, of a network "
        "trained without labels. Each cell: trained network | untrained network | trained network with shuffled "
        "labels. NMI is normalized mutual information with the classes: of k-means clusters of all units, and of "
        "single units, which are on for their strongest examples. A unit has a high preference if at least "
        f"{MIN_HIGH_PREFERENCE:.0%} of its {NUM_TOP_EXAMPLES} strongest examples are of one class. "
        "The paper reports for Kinetics-Sounds: NMI of clusters 0.409 for images (untrained 0.204) and 0.330 for audio "
        "(0.219); 10 and 11 of 34 classes preferred (1 and 1)."
    )
    tables = [
        PageTable(STUDY_TITLES[name], SELECTIVITY_COLUMNS, list_layer_rows(study)) for name, study in studies.items()
    ]
    numbers = {
        name: {
            "examples": study.examples,
            "classes": list(study.classes),
            **{
                system: {layer: measured._asdict() for layer, measured in layers.items()}
                for system, layers in study.systems.items()
            },
        }
        for name, study in studies.items()
    }
    return PageSection("Class selectivity of units", text, tables, numbers)


def list_layer_rows(study: SelectivityStudy) -> list[PageRow]:
    """One row for each layer."""
    rows = []
    for layer, trained in study.systems["trained"].items():
        found = [study.systems[system][layer] for system in SELECTIVITY_SYSTEMS]
        cells = [
            "conv4_2 (pool4)" if layer == POOL4 else layer,
            " | ".join(f"{one.clusters_nmi:.3f}" for one in found),
            " | ".join(f"{one.units_nmi:.3f}" for one in found),
            " | ".join(f"{one.best_nmi:.3f}" for one in found),
            " | ".join(str(one.num_selective_units) for one in found) + f" of {trained.num_units}",
            " | ".join(str(one.num_preferred_classes) for one in found) + f" of {len(study.classes)}",
        ]
        rows.append(PageRow(cells, is_main=layer == POOL4))
    return rows
