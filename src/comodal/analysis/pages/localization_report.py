"""The part of a report about sound source localization."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from comodal.analysis.heatmaps import normalize_map, resize_maps, shade_by_heat
from comodal.analysis.localization import LocalizationResult, find_map_peak, predict_by_position
from comodal.analysis.pages.html_page import embed_figure, format_section
from comodal.analysis.pointing_game import PointingScene, pair_scenes, run_pointing_game
from comodal.analysis.unit_activations import ClipMoments
from comodal.models.l3net.l3net import L3Net

NUM_SHOWN_SCENES = 12
POINTER_TITLES = {
    "trained": "trained: the place with the best verdict",
    "contributions": "trained: the place that adds most to the verdict",
    "untrained": "untrained: the place with the best verdict",
    "centre": "the middle of the picture",
}


def build_localization_parts(
    model: L3Net, moments: ClipMoments, scenes: Sequence[PointingScene], seed: int = 0
) -> list[str]:
    """Maps over held-out images; with scenes of known boxes, also the score of the pointing game."""
    text = (
        "Held-out pictures with their own sound; bright where that place alone goes best with the sound, from the "
        "worst to the best place of each picture, and a cross at the best."
    )
    places = np.unique(np.linspace(0, len(moments.names) - 1, NUM_SHOWN_SCENES).round().astype(int)).tolist()
    pictures = [np.ascontiguousarray(moments.image[place].permute(1, 2, 0).numpy()) for place in places]
    shown = [
        PointingScene("", image, moments.sound[place].numpy(), (), frozenset())
        for place, image in zip(places, pictures, strict=True)
    ]
    parts = [format_section("Where the sound is", text, embed_figure(draw_scenes(model, shown), "where the sound is"))]
    return [*parts, build_pointing_game_part(model, scenes, seed)] if scenes else parts


def build_pointing_game_part(model: L3Net, scenes: Sequence[PointingScene], seed: int) -> str:
    """The pointing game as a table, with some pairs of images side by side."""
    found = run_pointing_game(model, scenes, seed)
    text = (
        f"How often the highest point of the map lies in the box of an object that sounds: in {len(scenes)} held-out "
        "pictures alone, and in pairs of them side by side, of which only one is heard (framed: what sounds)."
    )
    rows = "".join(
        f'<tr class="{name}"><td>{POINTER_TITLES[name]}</td><td class="number">{hits["alone"]:.3f}</td>'
        f'<td class="number">{hits["beside"]:.3f}</td></tr>'
        for name, hits in found.items()
    )
    head = "<tr><th>points at</th><th>one picture</th><th>two side by side</th></tr>"
    drawn = embed_figure(draw_scenes(model, pair_scenes(scenes, seed)[:NUM_SHOWN_SCENES]), "two pictures, one sound")
    return format_section("Does it point at what sounds?", text, f"<table>{head}{rows}</table>{drawn}")


def draw_scenes(model: L3Net, scenes: Sequence[PointingScene], columns: int = 6) -> Figure:
    """Each scene's image, shaded by its map, with its boxes."""
    columns = columns if scenes[0].picture.shape[1] < 1.5 * scenes[0].picture.shape[0] else columns // 2
    rows = -(-len(scenes) // columns)
    figure = Figure(
        figsize=(9.6, 9.6 / columns * rows * scenes[0].picture.shape[0] / scenes[0].picture.shape[1] + 0.25 * rows),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    for axes, scene in zip(figure.axes, scenes, strict=False):
        image = torch.from_numpy(scene.picture).permute(2, 0, 1)[None]
        source = predict_by_position(model, image, torch.from_numpy(scene.sound)[None])
        draw_audio_source(axes, scene.picture, source)
        for left, top, right, bottom in scene.boxes:
            axes.add_patch(
                Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="#d9a441", linewidth=1.2)
            )
    return figure


def draw_audio_source(axes: Axes, shown: np.ndarray, source: LocalizationResult) -> None:
    """An image shaded by its map, a cross at the maximum, P(match) above it."""
    size = shown.shape[:2]
    warmth = normalize_map(resize_maps(source.places, size)[0].numpy())
    x, y = find_map_peak(source.places[0], size)
    axes.imshow(shade_by_heat(shown, warmth))
    axes.plot(x - 0.5, y - 0.5, marker="+", color="#35d0ba", markersize=10, markeredgewidth=2)
    axes.set_title(f"P(together) {float(source.together[0]):.2f}", fontsize=8)
