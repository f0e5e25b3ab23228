"""The linear probe: what can be read off frozen features by one linear layer (L3-Net, section 4.2 and 4.3).

Features are z-scored on the training part; a linear one-vs-all support vector machine or a multinomial logistic
regression is fitted; its strength C is chosen within the training part. An item may have several windows: each
window is trained on as if by itself, and the score of an item is the mean over its windows.

The objectives are scikit-learn's (`LinearSVC`: w'w / 2 + C * sum of squared hinges; `LogisticRegression`), the bias
free of the penalty. All classes are fitted at once by L-BFGS on matrix products. Measured on 3,200 x 768 features of
10 classes, two cores: 0.4 s, against 7.4 s by `LinearSVC`; a test compares the two.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

Classifier = Literal["svm", "logistic"]

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@dataclass(frozen=True)
class Probe:
    """A fitted probe: z-score of the training part, one linear layer, and C."""

    classifier: Classifier
    strength: float
    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    weight: Float[Tensor, "features classes"]
    bias: Float[Tensor, " classes"]

    def scores(self, features: Float[Tensor, "items windows features"]) -> Float[Tensor, "items classes"]:
        """Mean over the windows: of decision values for the SVM, of probabilities for the logistic regression."""
        weight = self.weight / self.scale[:, None]
        values = features @ weight + (self.bias - self.mean @ weight)
        return (values.softmax(-1) if self.classifier == "logistic" else values).mean(1)

    def predict(self, features: Float[Tensor, "items windows features"]) -> Int[np.ndarray, " items"]:
        """The class of the highest score of each item."""
        return self.scores(features).argmax(-1).cpu().numpy()


def standardisation(
    rows: Float[Tensor, "rows features"],
) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
    """Mean and deviation of each feature; a feature that never changes is left at scale 1."""
    deviation, mean = torch.std_mean(rows, dim=0, correction=0)
    return mean, torch.where(deviation > 1e-6 * (1.0 + mean.abs()), deviation, torch.ones_like(deviation))


def losses(
    values: Float[Tensor, "rows classes"], target: Int[Tensor, " rows"], classifier: Classifier
) -> Float[Tensor, ""]:
    """Sum over the rows of the squared hinges of all one-vs-all problems, or of the cross-entropy."""
    if classifier == "logistic":
        return F.cross_entropy(values, target, reduction="sum")
    sign = 2.0 * F.one_hot(target, values.shape[1]).to(values.dtype) - 1.0
    return (1.0 - sign * values).clamp(min=0.0).square().sum()


def preconditioner(gram: Float[Tensor, "features features"], ridge: float) -> Float[Tensor, "features features"]:
    """Triangular L with LL' near the objective's curvature: over L'w the objective is nearly round.

    Spectral features of neighbouring bands are so correlated that L-BFGS over w takes ten times the steps. The
    minimum is the same; the least ridge of 1e-3 keeps the factorisation sound in single precision.
    """
    return torch.linalg.cholesky(gram + max(ridge, 1e-3) * torch.eye(len(gram), dtype=gram.dtype, device=gram.device))


def minimise(
    rows: Float[Tensor, "rows features"],
    target: Int[Tensor, " rows"],
    classifier: Classifier,
    strength: float,
    factor: Float[Tensor, "features features"],
    start: tuple[Float[Tensor, "features classes"], Float[Tensor, " classes"]],
    iterations: int = 200,
) -> tuple[Float[Tensor, "features classes"], Float[Tensor, " classes"]]:
    """Weight and bias at the minimum, from a start; rows are standardised already."""
    rounded = (factor.mT @ start[0]).requires_grad_(True)
    bias = start[1].clone().requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [rounded, bias],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-5,
        tolerance_change=1e-6,
        line_search_fn="strong_wolfe",
    )

    def weight() -> Tensor:
        return torch.linalg.solve_triangular(factor.mT, rounded, upper=True)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = losses(rows @ weight() + bias, target, classifier) / len(rows)
        loss = loss + weight().square().sum() / (2.0 * strength * len(rows))
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight().detach(), bias.detach()


def fit_path(
    features: Float[Tensor, "items windows features"],
    target: Int[Tensor, " items"],
    classes: int,
    classifier: Classifier,
    strengths: Sequence[float],
) -> list[Probe]:
    """One probe for each strength, from the strongest penalty on; each fit starts where the one before ended."""
    rows = features.flatten(0, 1).clone()
    mean, scale = standardisation(rows)
    rows.sub_(mean).div_(scale)
    row_target = target.repeat_interleave(features.shape[1])
    gram = rows.mT @ rows / len(rows)
    weight, bias = rows.new_zeros(rows.shape[1], classes), rows.new_zeros(classes)
    probes = []
    for strength in sorted(strengths):
        factor = preconditioner(gram, 1.0 / (strength * len(rows)))
        weight, bias = minimise(rows, row_target, classifier, strength, factor, (weight, bias))
        probes.append(Probe(classifier, strength, mean, scale, weight, bias))
    return probes


def fit_probe(
    features: Float[Tensor, "items windows features"],
    target: Int[Tensor, " items"],
    folds: Int[np.ndarray, " items"],
    held_out: Sequence[int],
    classes: int,
    classifier: Classifier,
    strengths: Sequence[float] = STRENGTHS,
) -> Probe:
    """Chooses C on the training part alone, then fits on all of it.

    Args:
        features: the training part; the windows of an item stay together.
        target: class of each item.
        folds: which part of the training items each belongs to.
        held_out: the folds that are held out in turn to choose C.
        classes: how many classes there are.
        classifier: "svm" or "logistic".
        strengths: the values of C that are tried; of equally good ones the smallest is taken.

    Returns:
        The probe fitted on the whole training part with the chosen C.
    """
    ordered = sorted(strengths)
    right = np.zeros(len(ordered), dtype=np.int64)
    for fold in held_out if len(ordered) > 1 else ():
        held = torch.from_numpy(np.asarray(folds == fold))
        if not held.any() or held.all():
            raise ValueError(f"fold {fold} holds {int(held.sum())} of the {len(held)} training items")
        probes = fit_path(features[~held], target[~held], classes, classifier, ordered)
        for place, probe in enumerate(probes):
            right[place] += int((probe.scores(features[held]).argmax(-1) == target[held]).sum())
    best = int(right.argmax())
    return fit_path(features, target, classes, classifier, ordered[: best + 1])[-1]
