"""The sections of a report about sound source localization."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.analysis.heatmaps import normalize_map, resize_maps, shade_by_heat
from comodal.analysis.localization import LocalizationResult, find_map_peak, predict_by_position
from comodal.analysis.pages.page_parts import PageColumn, PageRow, PageSection, PageTable, embed_figure
from comodal.analysis.pointing_game import PointingScene, pair_scenes, run_pointing_game
from comodal.analysis.unit_activations import ClipExamples
from comodal.models.l3net.l3net import L3Net

NUM_SHOWN_SCENES = 12
POINTER_TITLES = {
    "trained": "trained network: the position with the highest margin",
    "contributions": "trained network: the position with the highest contribution",
    "untrained": "untrained network: the position with the highest margin",
    "center": "the center of the image",
}


def build_localization_parts(
    model: L3Net, examples: ClipExamples, scenes: Sequence[PointingScene], seed: int = 0
) -> list[PageSection]:
    """Maps over held-out images; with scenes of known boxes, also the score of the pointing game."""
    text = (
        "Held-out images with their own audio. Brightness is the margin of match over mismatch of each position alone, "
        "scaled from the lowest to the highest of the image. A cross marks the highest. Above each image is the "
        "probability of correspondence of the whole image with the audio."
    )
    indices = np.unique(np.linspace(0, len(examples.names) - 1, NUM_SHOWN_SCENES).round().astype(int)).tolist()
    images = [np.ascontiguousarray(examples.image[index].permute(1, 2, 0).numpy()) for index in indices]
    example_scenes = [
        PointingScene("", image, examples.audio[index].numpy(), (), frozenset())
        for index, image in zip(indices, images, strict=True)
    ]
    drawn = embed_figure(
        draw_scenes(model, example_scenes), "held-out images, bright where they correspond with their audio"
    )
    sections = [PageSection("Sound source localization", text, [drawn])]
    return [*sections, build_pointing_game_part(model, scenes, seed)] if scenes else sections


def build_pointing_game_part(model: L3Net, scenes: Sequence[PointingScene], seed: int) -> PageSection:
    """The pointing game as a table, with some pairs of images side by side."""
    accuracies = run_pointing_game(model, scenes, seed)
    text = (
        "How often the highest point of the map lies in the box of an object that makes a sound. The maps are those of "
        f"{len(scenes)} held-out images alone, and of pairs of images side by side with the audio of one. Frames "
        "mark the boxes."
    )
    columns = [PageColumn("points at"), PageColumn("one image", "number"), PageColumn("two side by side", "number")]
    rows = [
        PageRow(
            (POINTER_TITLES[name], f"{hits['alone']:.3f}", f"{hits['side_by_side']:.3f}"), is_main=name == "trained"
        )
        for name, hits in accuracies.items()
    ]
    pairs = pair_scenes(scenes, seed)[:NUM_SHOWN_SCENES]
    figure_html = embed_figure(draw_scenes(model, pairs), "two images side by side with the audio of one")
    table = PageTable("Accuracy of the pointing game", columns, rows)
    numbers = {name: dict(hits) for name, hits in accuracies.items()}
    return PageSection("Pointing game", text, [table, figure_html], {"scenes": len(scenes), **numbers})


def draw_scenes(model: L3Net, scenes: Sequence[PointingScene], columns: int = 6) -> Figure:
    """Each scene's image, shaded by its map, with its boxes."""
    columns = columns if scenes[0].image.shape[1] < 1.5 * scenes[0].image.shape[0] else columns // 2
    rows = -(-len(scenes) // columns)
    figure = Figure(
        figsize=(9.6, 9.6 / columns * rows * scenes[0].image.shape[0] / scenes[0].image.shape[1] + 0.25 * rows),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, scene in zip(figure.axes, scenes, strict=False):
        image = torch.from_numpy(scene.image).permute(2, 0, 1)[None]
        source = predict_by_position(model, image, torch.from_numpy(scene.audio)[None])
        draw_audio_source(axes, scene.image, source)
        for left, top, right, bottom in scene.boxes:
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#d9a441", linewidth=1.2)
            )
    return figure


def draw_audio_source(axes: Axes, image: np.ndarray, source: LocalizationResult) -> None:
    """An image shaded by its map, a cross at the maximum, the probability of correspondence above it."""
    size = image.shape[:2]
    heat = normalize_map(resize_maps(source.position_margins, size)[0].numpy())
    x, y = find_map_peak(source.position_margins[0], size)
    axes.imshow(shade_by_heat(image, heat))
    axes.plot(x - 0.5, y - 0.5, marker="+", color="#35d0ba", markersize=10, markeredgewidth=2)
    axes.set_title(f"{float(source.probability[0]):.2f}", fontsize=8)
