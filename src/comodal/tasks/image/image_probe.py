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
    C: float | None
    sgd_config: SGDConfig


class ImageProbeResult(NamedTuple):
    """The top predicted classes of each test image, the probe's C, and the solver."""

    top_classes: Int[np.ndarray, "tests top_k"]
    C: float
    solver: str


def classify_images(
    views: Sequence[Float16[np.ndarray, "items 1 features"]],
    test_features: Float16[np.ndarray, "tests views features"],
    items: Sequence[LabeledFile],
    is_usable: Bool[np.ndarray, " items"],
    fit: ProbeFit,
) -> ImageProbeResult:
    """Fits the layer on the readable training images, choosing C on a fifth of them, and predicts the test images."""
    classes = sorted({item.category for item in items})
    class_ids = {category: index for index, category in enumerate(classes)}
    target = np.array([class_ids[item.category] for item in items])
    is_held_out = np.array([assign_hash_part(f"C {item.name}") == 0 for item in items])
    is_c_searched = fit.C is None and is_held_out[is_usable].any() and not is_held_out[is_usable].all()
    c_values = LINEAR_PROBE_C_VALUES if fit.C is None else (fit.C,)
    solver = fit.solver
    if solver == "auto":
        solver = "lbfgs" if 4 * len(views) * views[0].size <= MAX_MEMORY_BYTES else "adam"
    if solver == "lbfgs":
        features = torch.from_numpy(np.concatenate([view[is_usable] for view in views], axis=1).astype(np.float32))
        inner_folds = np.where(is_held_out, 0, 1)[is_usable]
        folds = [0] if is_c_searched else []
        probe = fit_probe(
            features, torch.from_numpy(target[is_usable]), inner_folds, folds, len(classes), fit.classifier, c_values
        )
    else:
        sgd_config, C = fit.sgd_config._replace(solver=solver), c_values[0]
        if is_c_searched:
            masks = is_usable & ~is_held_out, is_usable & is_held_out
            C = choose_c_with_sgd(views, target, *masks, len(classes), fit.classifier, sgd_config, c_values)
        rows = FeatureRows(views, target, is_usable)
        probe = fit_sgd_probe(rows, len(classes), fit.classifier, C, sgd_config)
    top_classes = map_row_blocks(
        test_features, lambda block: predict_top_classes(probe, block, min(TOP_K_CLASSES, len(classes)))
    )
    return ImageProbeResult(top_classes, probe.C, solver)
