"""The linear probe on images, fitted by L-BFGS over all features at once, or by mini-batches over the feature cache."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float16, Int

from comodal.tasks.evaluation.class_folders import LabeledFile, assign_hash_part
from comodal.tasks.evaluation.linear_probe import LINEAR_PROBE_C_VALUES, Classifier, fit_probe
from comodal.tasks.evaluation.linear_probe_sgd import (
    FeatureRows,
    SGDConfig,
    choose_c_with_sgd,
    fit_sgd_probe,
    map_row_blocks,
    predict_top_classes,
)

ProbeSolver = Literal["auto", "lbfgs", "sgd", "adam"]
TOP_K_CLASSES = 5
MAX_MEMORY_BYTES = 1 << 30  # with solver="auto", L-BFGS is used up to this size of float32 features


class ProbeFit(NamedTuple):
    """How the linear layer is fitted."""

    classifier: Classifier
    solver: ProbeSolver
    strength: float | None
    steps: SGDConfig


class ImageProbeResult(NamedTuple):
    """The top predicted classes of each test image, the probe's C, and the solver."""

    best: Int[np.ndarray, "tests first"]
    strength: float
    solver: str


def classify_images(
    views: Sequence[Float16[np.ndarray, "items 1 features"]],
    tests: Float16[np.ndarray, "tests shots features"],
    items: Sequence[LabeledFile],
    usable: Bool[np.ndarray, " items"],
    fit: ProbeFit,
) -> ImageProbeResult:
    """Fits the layer on the readable training images, choosing C on a fifth of them, and predicts the test images."""
    classes = sorted({item.category for item in items})
    number = {category: place for place, category in enumerate(classes)}
    target = np.array([number[item.category] for item in items])
    held_out = np.array([assign_hash_part(f"C {item.name}") == 0 for item in items])
    searched = fit.strength is None and held_out[usable].any() and not held_out[usable].all()
    strengths = LINEAR_PROBE_C_VALUES if fit.strength is None else (fit.strength,)
    solver = fit.solver
    if solver == "auto":
        solver = "lbfgs" if 4 * len(views) * views[0].size <= MAX_MEMORY_BYTES else "adam"
    if solver == "lbfgs":
        features = torch.from_numpy(np.concatenate([view[usable] for view in views], axis=1).astype(np.float32))
        parts = np.where(held_out, 0, 1)[usable]
        folds = [0] if searched else []
        probe = fit_probe(
            features, torch.from_numpy(target[usable]), parts, folds, len(classes), fit.classifier, strengths
        )
    else:
        steps, chosen = fit.steps._replace(solver=solver), strengths[0]
        if searched:
            parts_of = usable & ~held_out, usable & held_out
            chosen = choose_c_with_sgd(views, target, *parts_of, len(classes), fit.classifier, steps, strengths)
        rows = FeatureRows(views, target, usable)
        probe = fit_sgd_probe(rows, len(classes), fit.classifier, chosen, steps)
    best = map_row_blocks(tests, lambda some: predict_top_classes(probe, some, min(TOP_K_CLASSES, len(classes))))
    return ImageProbeResult(best, probe.strength, solver)
