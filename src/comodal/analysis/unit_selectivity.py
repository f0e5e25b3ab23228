"""Class selectivity of units trained without labels (L3-Net, section 4.4, "Versus random features").

With many units, some prefer a class at random. Each measure is therefore compared for the trained network, for an
untrained one, and for the trained one with shuffled labels. The features of a layer are the maxima of its units:

- NMI of clusters: normalized mutual information between labels and k-means clusters of the features;
- NMI of units: a unit is on for its strongest examples, as many as a class has on average. Reported are the mean and
  the maximum over the units;
- high preference: units with at least half of their strongest examples in one class, and the classes that have such
  units.

Departs from the paper where it gives no details or we could not verify them: the number of clusters is the number of
classes; a high preference is half of the ten strongest examples.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from comodal.analysis.layer_activations import build_audio_tower_input, build_image_tower_input, max_channel_activations
from comodal.analysis.unit_activations import ClipExamples, UnitActivation, rank_units
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import make_untrained_copy
from comodal.models.codebook.clustering import run_kmeans
from comodal.models.l3net.l3net import L3Net

NUM_TOP_EXAMPLES, MIN_HIGH_PREFERENCE = 10, 0.5
SELECTIVITY_SYSTEMS = ("trained", "untrained", "shuffled")


class LayerSelectivity(NamedTuple):
    """Class selectivity of the units of one layer."""

    num_units: int
    clusters_nmi: float
    units_nmi: float
    best_nmi: float
    num_selective_units: int
    num_preferred_classes: int


class SelectiveUnit(NamedTuple):
    """A unit, and the most frequent label of its strongest examples with its fraction of them; "" without labels."""

    activation: UnitActivation
    preferred: str
    preference: float


class SelectivityStudy(NamedTuple):
    """Results for images or audio: for each system its layers in order, the number of examples, and the classes."""

    systems: dict[str, dict[str, LayerSelectivity]]
    examples: int
    classes: tuple[str, ...]


def study_units(model: L3Net, examples: ClipExamples, seed: int = 0) -> dict[str, SelectivityStudy]:
    """Class selectivity of both towers, compared with an untrained network and with shuffled labels.

    Args:
        model: The trained network.
        examples: With labels.
        seed: Of the untrained weights, the clusters and the shuffling. The untrained network's batch norms are
            calibrated on the examples.

    Raises:
        ValueError: An example has no label, or all have the same.
    """
    classes, target = np.unique(examples.labels, return_inverse=True)
    if len(target) != len(examples.names) or len(classes) < 2:
        raise ValueError(f"class selectivity needs labels of all examples and two or more classes; got {len(classes)}")
    shuffled = np.random.default_rng(seed).permutation(target)
    untrained = make_untrained_copy(model, seed)
    calibrate_batch_norms(untrained, untrained, examples.image, examples.audio)
    studies = {}
    for name, build_tower_input, inputs in (
        ("image", build_image_tower_input, examples.image),
        ("audio", build_audio_tower_input, examples.audio),
    ):
        trained, untrained_activations = (
            max_channel_activations(build_tower_input(model), inputs),
            max_channel_activations(build_tower_input(untrained), inputs),
        )
        labeled_activations = {
            "trained": (trained, target),
            "untrained": (untrained_activations, target),
            "shuffled": (trained, shuffled),
        }
        systems = {
            system: {layer: measure_layer_selectivity(values, labels, seed) for layer, values in layers.items()}
            for system, (layers, labels) in labeled_activations.items()
        }
        studies[name] = SelectivityStudy(systems, len(target), tuple(str(name) for name in classes))
    return studies


def measure_layer_selectivity(
    activations: Float[np.ndarray, "examples units"], target: Int[np.ndarray, " examples"], seed: int
) -> LayerSelectivity:
    """Class selectivity of the units of one layer."""
    classes = int(target.max()) + 1
    clusters = run_kmeans(standardize_units(activations), min(classes, len(target)), seed)[1]
    on = binarize_activations(activations, classes)
    nmi = compute_nmi_of_counts(np.stack([count_active_by_class(~on, target), count_active_by_class(on, target)], 1))
    preferred_classes, fraction = find_preferred_classes(activations, target)
    high = fraction >= MIN_HIGH_PREFERENCE
    return LayerSelectivity(
        num_units=activations.shape[1],
        clusters_nmi=compute_labeling_nmi(clusters, target),
        units_nmi=float(nmi.mean()),
        best_nmi=float(nmi.max()),
        num_selective_units=int(high.sum()),
        num_preferred_classes=len(np.unique(preferred_classes[high])),
    )


def standardize_units(activations: Float[np.ndarray, "examples units"]) -> Float[np.ndarray, "examples units"]:
    """Scales each unit to mean 0 and std 1; a constant unit is 0."""
    std = activations.std(0)
    centered = activations - activations.mean(0)
    return np.divide(centered, std, out=np.zeros_like(centered), where=std > 0).astype(np.float32)


def binarize_activations(
    activations: Float[np.ndarray, "examples units"], classes: int
) -> Bool[np.ndarray, "examples units"]:
    """A unit is on for its strongest examples, one of `classes`; those tied with the first that is off are off too."""
    count = round(len(activations) / classes)
    threshold = -np.partition(-activations, count, axis=0)[count]
    return activations > threshold


def count_active_by_class(
    on: Bool[np.ndarray, "examples units"], target: Int[np.ndarray, " examples"]
) -> Int[np.ndarray, "units classes"]:
    """The number of examples of each class for which each unit is on."""
    return on.T.astype(np.int64) @ np.eye(int(target.max()) + 1, dtype=np.int64)[target]


def compute_labeling_nmi(first: Sequence[int | str] | np.ndarray, second: Sequence[int | str] | np.ndarray) -> float:
    """Normalized mutual information of two labelings of the same items."""
    rows, columns = np.unique(first, return_inverse=True)[1], np.unique(second, return_inverse=True)[1]
    table = np.zeros((1, rows.max() + 1, columns.max() + 1), np.int64)
    np.add.at(table[0], (rows, columns), 1)
    return float(compute_nmi_of_counts(table)[0])


def compute_nmi_of_counts(table: Int[np.ndarray, "units clusters classes"]) -> Float[np.ndarray, " units"]:
    """I(clusters; classes) over the mean of their entropies, from counts; 0 where either has only one value."""
    joint = table / table.sum((1, 2), keepdims=True)
    clusters, classes = compute_row_entropy(joint.sum(2)), compute_row_entropy(joint.sum(1))
    shared = clusters + classes - compute_row_entropy(joint.reshape(len(joint), -1))
    certain = (clusters <= 0) | (classes <= 0)
    return np.where(certain, 0.0, np.clip(shared / np.where(certain, 1.0, (clusters + classes) / 2), 0.0, 1.0))


def compute_row_entropy(probabilities: Float[np.ndarray, "units values"]) -> Float[np.ndarray, " units"]:
    """The entropy of each row, in nats."""
    return -(probabilities * np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)).sum(1)


def find_preferred_classes(
    activations: Float[np.ndarray, "examples units"], target: Int[np.ndarray, " examples"]
) -> tuple[Int[np.ndarray, " units"], Float[np.ndarray, " units"]]:
    """The most frequent class of each unit's strongest examples, and its fraction; 0 for a constant unit."""
    num_top = min(NUM_TOP_EXAMPLES, len(activations))
    strongest_examples = np.argsort(-activations, axis=0, kind="stable")[:num_top]
    class_counts = np.eye(int(target.max()) + 1)[target[strongest_examples]].sum(0)
    fraction = class_counts.max(1) / num_top
    return class_counts.argmax(1), np.where(np.ptp(activations, axis=0) > 0, fraction, 0.0)


def select_units(
    activations: Float[np.ndarray, "examples channels"], labels: Sequence[str], units: int, top: int
) -> list[SelectiveUnit]:
    """The most selective units, each for another class as long as there are classes, then the next ones.

    Units are ordered by the fraction of their strongest examples in one class, then by how far their strongest
    activations are above their mean (`rank_units`). Without labels only the second applies.

    Args:
        activations: Of each unit for each example.
        labels: Of the examples; empty if they are not known.
        units: The maximum number of units.
        top: The number of examples of each unit.
    """
    ranked = rank_units(activations, activations.shape[1], top)
    if not labels:
        return [SelectiveUnit(unit, "", 0.0) for unit in ranked[:units]]
    classes, target = np.unique(labels, return_inverse=True)
    preferred, preference = find_preferred_classes(activations, target)
    found = [
        SelectiveUnit(unit, str(classes[preferred[unit.channel]]), float(preference[unit.channel])) for unit in ranked
    ]
    found.sort(key=lambda unit: -unit.preference)
    first: list[SelectiveUnit] = []
    others: list[SelectiveUnit] = []
    shown: set[str] = set()
    for unit in found:
        is_first = unit.preferred not in shown and unit.preference > 0
        (first if is_first else others).append(unit)
        shown.add(unit.preferred)
    return (first + others)[:units]
