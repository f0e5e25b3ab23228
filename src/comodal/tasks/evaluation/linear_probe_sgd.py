"""The linear probe trained by mini-batches, for features that exceed the memory: they are read from disk in blocks.

The objective is that of `linear_probe.py` (cross-entropy or squared hinges, and w'w / 2C over the rows), on features
z-scored over the training set, so that C has the same meaning. The optimizer is SGD with momentum or Adam (the paper's,
L3-Net, section 4.3), with a cosine schedule. Blocks are read in random order, and rows are shuffled within a block, so
the rows should be stored in random order.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor

from comodal.progress import track_progress
from comodal.tasks.evaluation.linear_probe import LINEAR_PROBE_C_VALUES, Classifier, LinearProbe, compute_probe_loss
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.training.optimization import make_cosine_schedule

StepSolver = Literal["sgd", "adam"]
MOMENTUM = 0.9
MAX_BLOCK_BYTES = 1 << 26  # size of a block
CURVATURE_SAMPLE_ROWS = 4096  # rows from which the step size of SGD is estimated
ADAM_STEP_SCALE = 1.0  # learning rate times the number of features, for Adam
SEARCH_FRACTION = 0.25  # fraction of the epochs that the choice of C takes
SGD_WARMUP_RATIO = 0.02


class SGDConfig(NamedTuple):
    """Optimizer, number of epochs, batch size, device, and the seed of the order."""

    solver: StepSolver
    epochs: int
    batch_size: int
    device: torch.device
    seed: int


class FeatureRows:
    """Rows of memory-mapped arrays: the same items in one or more views, one of which each epoch reads.

    Args:
        views: One array per view.
        target: The class of each item.
        is_used: The items that are used.
    """

    def __init__(
        self,
        views: Sequence[Float16[np.ndarray, "items 1 features"]],
        target: Int[np.ndarray, " items"],
        is_used: Bool[np.ndarray, " items"],
    ) -> None:
        self.views, self.target, self.is_used = views, target, is_used
        self.features = views[0].shape[2]
        self.block_rows = max(1, MAX_BLOCK_BYTES // (2 * self.features))

    def __len__(self) -> int:
        return int(self.is_used.sum())

    def blocks(
        self, view: int, rng: np.random.Generator | None
    ) -> Iterator[tuple[Float[Tensor, "rows features"], Int[Tensor, " rows"]]]:
        """All rows of a view in blocks, in random order or in storage order."""
        starts = np.arange(0, len(self.target), self.block_rows)
        for start in starts if rng is None else rng.permutation(starts):
            inside = np.flatnonzero(self.is_used[start : start + self.block_rows])
            inside = inside if rng is None else rng.permutation(inside)
            rows = np.asarray(self.views[view][start : start + self.block_rows, 0])[inside].astype(np.float32)
            if len(rows):
                yield torch.from_numpy(rows), torch.from_numpy(self.target[start : start + self.block_rows][inside])

    @cached_property
    def standardization(self) -> tuple[Float[Tensor, " features"], Float[Tensor, " features"]]:
        """Mean and std over all views, with blocks merged as by Chan et al. (1979); a constant feature has
        scale 1.
        """
        count = 0
        mean, squares = (torch.zeros(self.features, dtype=torch.float64) for _ in range(2))
        for view in range(len(self.views)):
            for rows, _ in self.blocks(view, None):
                variance, block_mean = (part.double() for part in torch.var_mean(rows, 0, correction=0))
                total = count + len(rows)
                squares += variance * len(rows) + (block_mean - mean).square() * (count * len(rows) / total)
                mean += (block_mean - mean) * (len(rows) / total)
                count = total
        std = (squares / count).sqrt()
        scale = torch.where(std > 1e-6 * (1.0 + mean.abs()), std, torch.ones_like(std))
        return mean.float(), scale.float()


def fit_sgd_probe(rows: FeatureRows, classes: int, classifier: Classifier, C: float, config: SGDConfig) -> LinearProbe:
    """Minimizes the objective; the order depends on the seed alone."""
    mean, scale = rows.standardization
    weight = torch.zeros(classes, rows.features, device=config.device, requires_grad=True)
    bias = torch.zeros(classes, 1, device=config.device, requires_grad=True)
    decay = 1.0 / (C * len(rows))
    groups = [{"params": [weight], "weight_decay": decay}, {"params": [bias], "weight_decay": 0.0}]
    if config.solver == "sgd":
        max_learning_rate = 1.0 / (bound_curvature(rows, mean, scale, classifier, config) + decay)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=max_learning_rate, momentum=MOMENTUM)
    else:
        max_learning_rate = ADAM_STEP_SCALE / rows.features
        optimizer = torch.optim.Adam(groups, lr=max_learning_rate)
    num_steps = config.epochs * -(-len(rows) // config.batch_size)
    schedule = make_cosine_schedule(max_learning_rate, num_steps, round(SGD_WARMUP_RATIO * num_steps), min_lr_ratio=0.0)
    on_device = (mean.to(config.device), scale.to(config.device))
    for step, (batch, target) in enumerate(iterate_batches(rows, config)):
        for group in optimizer.param_groups:
            group["lr"] = schedule(min(step, num_steps))
        standard = (batch.to(config.device) - on_device[0]) / on_device[1]
        loss = compute_probe_loss(weight @ standard.mT + bias, target.to(config.device), classifier) / len(target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return LinearProbe(classifier, C, mean, scale, weight.detach().cpu(), bias.detach().cpu())


def iterate_batches(
    rows: FeatureRows, config: SGDConfig
) -> Iterator[tuple[Float[Tensor, "rows features"], Int[Tensor, " rows"]]]:
    """The batches of all epochs; epoch e reads view e."""
    for epoch in track_progress(range(config.epochs), "fitting by SGD"):
        rng = np.random.default_rng((config.seed, epoch))
        for block, target in rows.blocks(epoch % len(rows.views), rng):
            yield from zip(block.split(config.batch_size), target.split(config.batch_size), strict=True)


def bound_curvature(
    rows: FeatureRows,
    mean: Float[Tensor, " features"],
    scale: Float[Tensor, " features"],
    classifier: Classifier,
    config: SGDConfig,
) -> float:
    """An upper bound of the curvature of a batch's loss, estimated from a sample; the step size of SGD is its inverse.

    It combines the largest eigenvalue of the features' covariance with the sampling noise of a small batch. The factor
    is 1/2 for cross-entropy and 2 for squared hinges.
    """
    block, _ = next(rows.blocks(0, np.random.default_rng(config.seed)))
    sample = (block[:CURVATURE_SAMPLE_ROWS] - mean) / scale
    sample = torch.cat([sample, torch.ones(len(sample), 1)], 1)
    largest = float(torch.linalg.matrix_norm(sample, 2)) ** 2 / len(sample)
    sampling_noise = sample.square().sum(1).max().item() / min(config.batch_size, len(sample))
    return (0.5 if classifier == "logistic" else 2.0) * (largest**0.5 + sampling_noise**0.5) ** 2


def choose_c_with_sgd(
    views: Sequence[Float16[np.ndarray, "items 1 features"]],
    target: Int[np.ndarray, " items"],
    train_mask: Bool[np.ndarray, " items"],
    validation_mask: Bool[np.ndarray, " items"],
    classes: int,
    classifier: Classifier,
    config: SGDConfig,
    c_values: Sequence[float] = LINEAR_PROBE_C_VALUES,
) -> float:
    """The C with the highest accuracy on the held-out training items, after fitting on the others.

    C increases from its smallest value until accuracy no longer improves; these fits take a quarter of the epochs.
    """
    search_config = config._replace(epochs=max(len(views), round(SEARCH_FRACTION * config.epochs)))
    train_rows, validation_rows = (
        FeatureRows(views, target, train_mask),
        FeatureRows(views[:1], target, validation_mask),
    )
    best, max_correct = min(c_values), -1
    for C in sorted(c_values):
        probe = fit_sgd_probe(train_rows, classes, classifier, C, search_config)
        num_correct = sum(
            int((predict_top_classes(probe, rows[:, None], 1)[:, 0] == truth).sum())
            for rows, truth in validation_rows.blocks(0, None)
        )
        if num_correct <= max_correct:
            break
        best, max_correct = C, num_correct
    return best


def predict_top_classes(
    probe: LinearProbe, features: Float[Tensor, "items views features"], top_k: int
) -> Int[Tensor, "items _"]:
    """The classes with the highest scores, in descending order.

    Raises:
        DataError: A score is not finite.
    """
    scores = probe.compute_scores(features)
    check_finite_scores(scores.numpy(), "scores of the probe")
    return scores.topk(top_k, dim=1).indices


def map_row_blocks(
    rows: Float16[np.ndarray, "items views features"],
    predict: Callable[[Float[Tensor, "block views features"]], Int[Tensor, "block count"]],
) -> Int[np.ndarray, "items count"]:
    """Applies a function to all rows, one block at a time."""
    size = max(1, MAX_BLOCK_BYTES // (2 * rows.shape[1] * rows.shape[2]))
    parts = [
        predict(torch.from_numpy(np.asarray(rows[start : start + size]).astype(np.float32)))
        for start in range(0, len(rows), size)
    ]
    return torch.cat(parts).numpy()
