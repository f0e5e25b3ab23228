"""The MLP probe: a perceptron with two hidden layers on frozen features.

The widths of 512 and 128 with ReLU are those of OpenL3's evaluation (Cramer et al. 2019, section 4). Features are
z-scored on the training set; each window is a training example, and the probabilities of an item are the mean over its
windows. The objective is the mean cross-entropy and w'w / 2C over the weights of all layers; the values of C correspond
to OpenL3's weight decays of 1e-3, 1e-4 and 1e-5. Departs from OpenL3: only C is chosen within the training set, and the
number of epochs is fixed. The choice uses whole items (OpenL3 splits windows, so that those of one file are on both
sides).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.tasks.evaluation.linear_probe import choose_c, compute_mean_and_std, select_best_class
from comodal.training.optimization import make_cosine_schedule

HIDDEN_WIDTHS = (512, 128)
MLP_PROBE_C_VALUES = (5e2, 5e3, 5e4)
NUM_FIT_EPOCHS, NUM_SEARCH_EPOCHS, MLP_BATCH_SIZE, MLP_LEARNING_RATE, MIN_STEPS = 20, 10, 64, 1e-3, 200
MAX_PREDICTION_ROWS = 8192  # rows per forward pass


@dataclass(frozen=True)
class MLPProbe:
    """A fitted perceptron: the z-score of the training set, three layers, and C."""

    C: float
    mean: Float[Tensor, " features"]
    scale: Float[Tensor, " features"]
    layers: nn.Sequential

    @torch.inference_mode()
    def compute_scores(self, features: Float[Tensor, "items windows features"]) -> Float[Tensor, "items classes"]:
        """The mean over the windows of the class probabilities."""
        rows = features.flatten(0, 1).split(MAX_PREDICTION_ROWS)
        values = torch.cat([self.layers((part - self.mean) / self.scale).softmax(-1) for part in rows])
        return values.unflatten(0, features.shape[:2]).mean(1)

    def predict(self, features: Float[Tensor, "items windows features"]) -> Int[np.ndarray, " items"]:
        """The class with the highest score, for each item."""
        return select_best_class(self.compute_scores(features)).numpy()


class MLPProbeProblem:
    """The windows of a training set as standardized rows; every fit starts from the same initial weights."""

    def __init__(
        self,
        features: Float[Tensor, "items windows features"],
        target: Int[Tensor, " items"],
        classes: int,
        seed: int,
    ) -> None:
        self.rows = features.flatten(0, 1).clone()
        self.target = target.repeat_interleave(features.shape[1])
        self.mean, self.scale = compute_mean_and_std(self.rows)
        self.rows.sub_(self.mean).div_(self.scale)
        self.classes, self.seed = classes, seed

    def fit(self, C: float, epochs: int) -> MLPProbe:
        """Minimizes by Adam over mini-batches with a cosine schedule; the seed determines initial weights and order."""
        generator = torch.Generator().manual_seed(self.seed)
        layers = build_mlp_layers((self.rows.shape[1], *HIDDEN_WIDTHS, self.classes), generator)
        weights = [layer.weight for layer in layers if isinstance(layer, nn.Linear)]
        biases = [layer.bias for layer in layers if isinstance(layer, nn.Linear)]
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": 1.0 / C}, {"params": biases}]
        optimizer = torch.optim.Adam(groups, lr=MLP_LEARNING_RATE, fused=True)  # weight decay: the gradient of w'w / 2C
        batch_size = min(MLP_BATCH_SIZE, len(self.rows))
        steps = max(MIN_STEPS, epochs * -(-len(self.rows) // batch_size))
        schedule = make_cosine_schedule(MLP_LEARNING_RATE, steps, 0, min_lr_ratio=0.0)
        order = torch.randperm(len(self.rows), generator=generator)
        for step in range(steps):
            if len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(self.rows), generator=generator)])
            rows, order = order[:batch_size], order[batch_size:]
            loss = F.cross_entropy(layers(self.rows[rows]), self.target[rows])
            for group in optimizer.param_groups:
                group["lr"] = schedule(step)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return MLPProbe(C, self.mean, self.scale, layers)


def build_mlp_layers(widths: Sequence[int], generator: torch.Generator) -> nn.Sequential:
    """Linear layers with ReLU between them; weights initialized as by He et al. (2015), biases with zero."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layer = nn.utils.skip_init(nn.Linear, inputs, outputs)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit_mlp_probe(
    features: Float[Tensor, "items windows features"],
    target: Int[Tensor, " items"],
    folds: Int[np.ndarray, " items"],
    held_out_folds: Sequence[int],
    classes: int,
    seed: int,
) -> MLPProbe:
    """Chooses C within the training set, then fits on all of it, as `fit_probe` does."""

    def problem(inputs: Tensor, truth: Tensor) -> MLPProbeProblem:
        return MLPProbeProblem(inputs, truth, classes, seed)

    C = choose_c(features, target, folds, held_out_folds, problem, MLP_PROBE_C_VALUES, NUM_SEARCH_EPOCHS)
    return problem(features, target).fit(C, NUM_FIT_EPOCHS)
