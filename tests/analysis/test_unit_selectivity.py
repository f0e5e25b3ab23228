"""NMI as scikit-learn has it, and units whose preferences are known."""

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from comodal.analysis.unit_activations import ClipExamples, rank_units
from comodal.analysis.unit_selectivity import (
    SELECTIVITY_SYSTEMS,
    binarize_activations,
    compute_labeling_nmi,
    compute_nmi_of_counts,
    count_active_by_class,
    find_preferred_classes,
    measure_layer_selectivity,
    select_units,
    study_units,
)
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.vgg import VGG_LAYER_NAMES


@pytest.mark.parametrize(
    ("clusters", "classes"),
    [
        ([0, 0, 1, 1, 2, 2], ["a", "a", "b", "b", "c", "c"]),
        ([0, 0, 1, 1, 2, 2], ["c", "c", "a", "a", "b", "b"]),
        ([0, 1, 0, 1], ["a", "a", "b", "b"]),
        ([5, 5, 5, 7, 7, 9], ["a", "b", "a", "b", "b", "a"]),
        ([1, 1, 1], ["a", "b", "a"]),
    ],
)
def test_nmi_is_scikit_learns(clusters: list[int], classes: list[str]):
    assert compute_labeling_nmi(clusters, classes) == pytest.approx(
        normalized_mutual_info_score(classes, clusters), abs=1e-12
    )


def test_nmi_of_many_units_at_once_is_scikit_learns_of_each():
    rng = np.random.default_rng(0)
    target, on = rng.integers(4, size=60), rng.random((60, 20)) < rng.random(20)
    found = compute_nmi_of_counts(np.stack([count_active_by_class(~on, target), count_active_by_class(on, target)], 1))
    assert found == pytest.approx([normalized_mutual_info_score(target, column) for column in on.T], abs=1e-12)


def test_a_unit_is_on_for_as_many_examples_as_a_class_has():
    activations = np.array([[0.0, 3.0], [5.0, 3.0], [1.0, 3.0], [4.0, 3.0], [2.0, 3.0], [3.0, 3.0]])
    assert binarize_activations(activations, 3)[:, 0].tolist() == [False, True, False, True, False, False]
    assert not binarize_activations(activations, 3)[:, 1].any()  # a constant unit is never on


def test_the_favourite_is_the_class_of_most_of_the_ten_strongest():
    target = np.array([0] * 8 + [1] * 12)
    activations = np.stack([-np.arange(20.0), np.arange(20.0), np.ones(20)], 1)
    favourite, share = find_preferred_classes(activations, target)
    assert favourite[:2].tolist() == [0, 1]
    assert share.tolist() == [0.8, 1.0, 0.0]


def test_a_unit_that_knows_a_class_is_told_from_noise():
    rng = np.random.default_rng(1)
    target = np.repeat([0, 1, 2, 3], 15)
    noise = rng.normal(size=(60, 3))
    known = np.stack([np.where(target == 0, 5.0, 0.0) + 0.1 * rng.random(60), *noise.T], 1)
    found = measure_layer_selectivity(known, target, seed=0)
    assert (found.num_units, found.num_selective_units, found.num_preferred_classes) == (4, 1, 1)
    # for one of four equal classes: I = H(on) = 0.5623, H(classes) = log 4 = 1.3863, their mean 0.9743
    assert found.best_nmi == pytest.approx(0.5623 / 0.9743, abs=1e-3)
    blobs = measure_layer_selectivity(np.eye(4)[target] * 10 + 0.1 * noise[:, :1], target, seed=0)
    assert blobs.clusters_nmi == pytest.approx(1.0)
    assert blobs.num_preferred_classes == 4


def test_the_study_has_all_layers_of_both_towers_beside_both_baselines():
    torch.manual_seed(0)
    model, size = L3Net(make_small_l3net_config(1, 16)).eval(), 6
    rng = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (size, 3, 16, 16), generator=rng, dtype=torch.uint8)
    sound = 0.1 * torch.randn(size, 48_000, generator=rng)
    examples = ClipExamples(image, sound, tuple("abcdef"), ("x", "y", "x", "y", "x", "y"))
    found = study_units(model, examples)
    assert set(found) == {"image", "audio"}
    for study in found.values():
        assert (study.examples, study.classes) == (6, ("x", "y"))
        assert tuple(study.systems) == SELECTIVITY_SYSTEMS
        assert all(tuple(layers) == VGG_LAYER_NAMES for layers in study.systems.values())
        assert study.systems["trained"]["conv4_2"].num_units == 8
    assert found == study_units(model, examples)
    with pytest.raises(ValueError, match="labels of all examples and two or more classes; got 0"):
        study_units(model, ClipExamples(image, sound, tuple("abcdef"), ()))


def test_units_of_different_classes_come_first_then_the_next_most_selective():
    """Ten examples each of clock, dog and fan; each unit is on for ten examples, so these are its ten strongest."""
    labels = ["clock"] * 10 + ["dog"] * 10 + ["fan"] * 10
    counts = [(7, 3, 0), (10, 0, 0), (0, 2, 8), (9, 0, 1), (2, 6, 2), (0, 0, 0)]  # of unit 5: always off
    activations = np.zeros((30, 6))
    for unit, of_class in enumerate(counts):
        for place, count in enumerate(of_class):
            activations[10 * place : 10 * place + count, unit] = 1.0
    found = select_units(activations, labels, 6, 4)
    assert [(unit.activation.channel, unit.preferred, unit.preference) for unit in found[:5]] == [
        (1, "clock", 1.0), (2, "fan", 0.8), (4, "dog", 0.6), (3, "clock", 0.9), (0, "clock", 0.7),
    ]  # fmt: skip
    assert (found[5].activation.channel, found[5].preference) == (5, 0.0)
    assert [unit.activation.channel for unit in select_units(activations, labels, 2, 4)] == [1, 2]
    without = select_units(activations, (), 6, 4)
    assert [unit.activation.channel for unit in without] == [unit.channel for unit in rank_units(activations, 6, 4)]
    assert {unit.preferred for unit in without} == {""}
