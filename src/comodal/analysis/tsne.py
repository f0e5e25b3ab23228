"""A plane of examples by t-SNE of their embeddings (van der Maaten and Hinton 2008; Look, Listen and Learn, appendix).

Neighbors in the plane are neighbors in the features; distances between clusters and their sizes mean nothing. Labels
only color the points.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from comodal.analysis.unit_selectivity import standardize_units
from comodal.console import escape_plot_text

MIN_TSNE_EXAMPLES = 4
MAX_PERPLEXITY = 30.0  # scikit-learn's default
MARKERS = "os^Dv"  # with ten colors, for up to 50 classes
COLORS = 10


def compute_tsne(activations: Float[np.ndarray, "examples units"], seed: int) -> Float[np.ndarray, "examples 2"]:
    """The positions of examples in the plane, from standardized units; deterministic for a seed.

    Args:
        activations: Of each unit for each example.
        seed: Of the optimization.

    Raises:
        ValueError: There are fewer than four examples.
    """
    if len(activations) < MIN_TSNE_EXAMPLES:
        raise ValueError(f"t-SNE needs at least {MIN_TSNE_EXAMPLES} examples, got {len(activations)}")
    perplexity = min(MAX_PERPLEXITY, (len(activations) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(standardize_units(activations)).astype(np.float64)


def draw_tsne(positions: Mapping[str, Float[np.ndarray, "examples 2"]], labels: Sequence[str]) -> Figure:
    """One plane for each name, side by side, with a color and a marker for each class."""
    figure = Figure(figsize=(10.0, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (name, points) in zip(
        figure.subplots(1, len(positions), squeeze=False)[0], positions.items(), strict=True
    ):
        draw_classes(axes, points, labels)
        axes.set_title(name, fontsize=10)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=6, frameon=False, fontsize=7)
    return figure


def draw_classes(axes: Axes, points: Float[np.ndarray, "examples 2"], labels: Sequence[str]) -> None:
    """The points of each class."""
    for index, name in enumerate(sorted(set(labels))):
        chosen = points[[label == name for label in labels]]
        marker = MARKERS[index // COLORS % len(MARKERS)]
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=14, color=f"C{index % COLORS}", marker=marker, label=escape_plot_text(name)
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[["top", "right", "left", "bottom"]].set_color("#cccccc")
