"""The linear probe: one linear layer on frozen features (L3-Net, sections 4.2 and 4.3).

Features are z-scored on the training set; a linear one-vs-all support vector machine or a multinomial logistic
regression is fitted; its C is chosen within the training set. An item may have several windows: each
window is a training example of its own, and the score of an item is the mean over its windows.

The objectives are scikit-learn's (`LinearSVC`: w'w / 2 + C * sum of squared hinges; `LogisticRegression`), the bias
free of the penalty. All classes are fitted at once by L-BFGS with matrix products. Measured on 3,200 x 768 features of
ESC-10, C of 0.01, one core: 0.44 s, compared with 3.2 s for `LinearSVC`; tests compare the solutions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from comodal.tasks.evaluation.metrics import check_finite_scores

Classifier = Literal["svm", "logistic"]

MAX_SEARCH_ITERATIONS, MAX_FIT_ITERATIONS = 60, 300
LINEAR_PROBE_C_VALUES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


@runtime_checkable
class FittedClassifier(Protocol):
    """A fitted classifier that gives each item a score for each class."""

    def compute_scores(self, features: Float[Tensor, "items windows features"]) -> Float[Tensor, "items classes"]: ...


@runtime_checkable
class ProbeProblem(Protocol):
    """A training set that can be fitted with any C, for a number of iterations."""

    def fit(self, C: float, iterations: int, /) -> FittedClassifier: ...


def select_best_class(scores: Float[Tensor, "items classes"]) -> Int[Tensor, " items"]:
    """The class with the highest score, for each item.

    Raises:
        DataError: A score is not finite.
    """
    check_finite_scores(scores.numpy(), "scores of the probe")
    return scores.argmax(-1)


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: the z-score of the training set, one linear layer, and C."""

    classifier: Classifier
    C: float
    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    weight: Float[Tensor, "classes features"]
    bias: Float[Tensor, "classes 1"]

    def compute_scores(self, features: Float[Tensor, "items windows features"]) -> Float[Tensor, "items classes"]:
        """The mean over the windows of decision values (SVM) or of probabilities (logistic regression)."""
        weight = self.weight / self.scale
        values = features @ weight.mT + (self.bias[:, 0] - weight @ self.mean)
        return (values.softmax(-1) if self.classifier == "logistic" else values).mean(1)

    def predict(self, features: Float[Tensor, "items windows features"]) -> Int[np.ndarray, " items"]:
        """The class with the highest score, for each item."""
        return select_best_class(self.compute_scores(features)).numpy()


class LinearProbeProblem:
    """The windows of a training set as standardized rows. Each fit starts from the solution for the last C."""

    def __init__(
        self,
        features: Float[Tensor, "items windows features"],
        target: Int[Tensor, " items"],
        classes: int,
        classifier: Classifier,
    ) -> None:
        self.classifier: Classifier = classifier
        self.rows = features.flatten(0, 1).clone()
        self.target = target.repeat_interleave(features.shape[1])
        self.mean, self.scale = compute_mean_and_std(self.rows)
        self.rows.sub_(self.mean).div_(self.scale)
        self.basis: Tensor | None = None
        if len(self.rows) < self.rows.shape[1]:
            # The weights of least norm lie in the span of the rows: over an orthonormal basis of it the problem is the
            # same, with as many features as there are rows.
            self.basis, coordinates = torch.linalg.qr(self.rows.mT)
            self.rows = coordinates.mT.contiguous()
        self.gram = self.rows.mT @ self.rows / len(self.rows)
        self.weight = self.rows.new_zeros(classes, self.rows.shape[1])
        self.bias = self.rows.new_zeros(classes, 1)

    def fit(self, C: float, iterations: int) -> LinearProbe:
        """Minimizes the objective from the last solution.

        L-BFGS runs in coordinates in which the objective is well conditioned (`factor_preconditioner`). Classes
        are the first dimension in all products: with ten classes these are three times as fast as with rows first.
        """
        factor = factor_preconditioner(self.gram, 1.0 / (C * len(self.rows)))
        rounded = (self.weight @ factor).requires_grad_(True)
        bias = self.bias.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [rounded, bias],
            max_iter=iterations,
            history_size=10,
            tolerance_grad=1e-5,
            tolerance_change=1e-6,
            line_search_fn="strong_wolfe",
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            weight = torch.linalg.solve_triangular(factor, rounded, upper=False, left=False).contiguous()
            loss = compute_probe_loss(weight @ self.rows.mT + bias, self.target, self.classifier) / len(self.rows)
            loss = loss + weight.square().sum() / (2.0 * C * len(self.rows))
            loss.backward()
            return loss

        optimizer.step(closure)
        self.weight = torch.linalg.solve_triangular(factor, rounded.detach(), upper=False, left=False)
        self.bias = bias.detach()
        weight = self.weight if self.basis is None else self.weight @ self.basis.mT
        return LinearProbe(self.classifier, C, self.mean, self.scale, weight, self.bias.clone())


def compute_mean_and_std(
    rows: Float[Tensor, "rows features"],
) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
    """The mean and std of each feature; a constant feature has scale 1."""
    std, mean = torch.std_mean(rows, dim=0, correction=0)
    return mean, torch.where(std > 1e-6 * (1.0 + mean.abs()), std, torch.ones_like(std))


def compute_probe_loss(
    values: Float[Tensor, "classes rows"], target: Int[Tensor, " rows"], classifier: Classifier
) -> Float[Tensor, ""]:
    """The sum over the rows of the squared hinges of all one-vs-all problems, or of the cross-entropy."""
    if classifier == "logistic":
        return F.cross_entropy(values.mT, target, reduction="sum")
    sign = 2.0 * F.one_hot(target, len(values)).mT.to(values.dtype) - 1.0
    return (1.0 - sign * values).clamp(min=0.0).square().sum()


def factor_preconditioner(gram: Float[Tensor, "features features"], ridge: float) -> Float[Tensor, "features features"]:
    """Lower triangular L with LL' near the objective's curvature, so that the objective is well conditioned over L'w.

    Neighboring features are so correlated that L-BFGS over w takes ten times as many steps. The minimum is the same;
    the minimum ridge of 1e-3 keeps the factorization stable in single precision.
    """
    return torch.linalg.cholesky(gram + max(ridge, 1e-3) * torch.eye(len(gram), dtype=gram.dtype))


def choose_c(
    features: Float[Tensor, "items windows features"],
    target: Int[Tensor, " items"],
    folds: Int[np.ndarray, " items"],
    held_out_folds: Sequence[int],
    problem: Callable[[Tensor, Tensor], ProbeProblem],
    c_values: Sequence[float],
    iterations: int = MAX_SEARCH_ITERATIONS,
) -> float:
    """The C with the highest accuracy on the held-out folds, after fitting on the others.

    C increases from its smallest value until accuracy no longer improves. Without held-out folds, it is the smallest.
    """
    problems = []
    for fold in held_out_folds:
        is_held_out = torch.from_numpy(np.asarray(folds == fold))
        if not is_held_out.any() or is_held_out.all():
            raise ValueError(f"fold {fold} holds {int(is_held_out.sum())} of the {len(is_held_out)} training items")
        problems.append((problem(features[~is_held_out], target[~is_held_out]), is_held_out))
    best, max_correct = min(c_values), -1
    for C in sorted(c_values):
        num_correct = 0
        for fold_problem, is_held_out in problems:
            predictions = select_best_class(fold_problem.fit(C, iterations).compute_scores(features[is_held_out]))
            num_correct += int((predictions == target[is_held_out]).sum())
        if num_correct <= max_correct:
            break
        best, max_correct = C, num_correct
    return best


def fit_probe(
    features: Float[Tensor, "items windows features"],
    target: Int[Tensor, " items"],
    folds: Int[np.ndarray, " items"],
    held_out_folds: Sequence[int],
    classes: int,
    classifier: Classifier,
    c_values: Sequence[float] = LINEAR_PROBE_C_VALUES,
) -> LinearProbe:
    """Chooses C within the training set, then fits on all of it.

    Args:
        features: the training set, windows grouped by item.
        target: class of each item.
        folds: inner fold of each training item.
        held_out_folds: the folds that are held out in turn to choose C.
        classes: number of classes.
        classifier: "svm" or "logistic".
        c_values: the values of C to try.

    Returns:
        The probe fitted on the whole training set with the chosen C.
    """
    problem = partial(LinearProbeProblem, classes=classes, classifier=classifier)
    C = choose_c(features, target, folds, held_out_folds, problem, c_values)
    return problem(features, target).fit(C, MAX_FIT_ITERATIONS)
