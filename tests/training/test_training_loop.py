"""The loop."""

from dataclasses import dataclass
from itertools import chain, repeat

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from comodal.hardware import Compute
from comodal.training.training_loop import (
    NotFiniteError,
    PendingMetrics,
    compute_gradient_norm,
    train_steps,
    validate_objective,
)

CPU = Compute(torch.device("cpu"))


@dataclass(frozen=True)
class Points:
    x: Tensor
    keys: tuple[str, ...]

    def to(self, _device: torch.device) -> "Points":
        return self


def points(*values: float) -> Points:
    return Points(torch.tensor(values), tuple(f"point {value}" for value in values))


class Distance(nn.Module):
    """Half the mean square of the distance to the points: its minimum is their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.tensor(0.0))

    def forward(self, batch: Points) -> dict[str, Tensor]:
        difference = self.at - batch.x
        return {"loss": difference.square().mean() / 2, "largest": difference.abs().max()}


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.tensor([3.0, 4.0]))

    def forward(self, _batch: Points) -> dict[str, Tensor]:
        return {"loss": 3 * self.x[0] - 4 * self.x[1]}


def steps(objective: nn.Module, batches: list[Points], number: int, rate: float = 0.1, **options) -> list[dict]:
    optimizer = torch.optim.SGD(objective.parameters(), lr=123.0)  # the schedule's rate counts
    read = train_steps(
        objective, iter(batches), optimizer, lambda step: rate * (step + 1), range(number), CPU, **options
    )
    return list(chain.from_iterable(read))


def test_one_step_is_the_step_worked_out_by_hand():
    """The gradient (3, -4) has norm 5; the learning rate is 0.1."""
    objective = Slope()
    (metrics,) = steps(objective, [points(0.0)], 1)
    assert_close(objective.x.detach(), torch.tensor([3 - 0.3, 4 + 0.4]))
    assert metrics == {"loss": pytest.approx(-7.0), "gradient_norm": pytest.approx(5.0)}


def test_each_step_has_its_learning_rate():
    """From 0 towards 1: 0.1 of the way, then 0.2 of the 0.9 that are left."""
    objective = Distance()
    steps(objective, [points(1.0)] * 2, 2)
    assert objective.at.item() == pytest.approx(0.1 + 0.2 * 0.9)


def test_parts_of_a_step_are_one_step():
    whole, parts = Distance(), Distance()
    (one,) = steps(whole, [points(1.0, 2.0, 3.0, 6.0)], 1)
    (other,) = steps(parts, [points(1.0, 2.0), points(3.0, 6.0)], 1, parts=2)
    assert_close(whole.at, parts.at)
    assert one["loss"] == pytest.approx(other["loss"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stops_with_the_step_and_the_keys(bad):
    objective = Distance()
    with pytest.raises(NotFiniteError, match=r"at step 2 the loss is (nan|inf)") as caught:
        steps(objective, [points(1.0)] * 4 + [points(2.0), points(bad, 3.0)], 3, parts=2)
    assert caught.value.step == 2
    assert caught.value.keys == ("point 2.0", f"point {bad}", "point 3.0")
    assert objective.at.isfinite()


def test_metrics_that_are_read_late_still_name_the_step_and_its_samples():
    """As on a GPU, which is read every few steps: the first bad step counts, however many followed it."""
    pending = PendingMetrics()
    for step, loss in enumerate([1.0, 2.0]):
        pending.add(step, {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(3.0)}, (f"sample {step}",))
    assert pending.read() == [{"loss": 1.0, "gradient_norm": 3.0}, {"loss": 2.0, "gradient_norm": 3.0}]
    for step, loss in enumerate([1.0, float("nan"), float("inf")], start=2):
        pending.add(step, {"loss": torch.tensor(loss), "gradient_norm": torch.tensor(3.0)}, (f"sample {step}",))
    with pytest.raises(NotFiniteError, match="at step 3 the loss is nan") as caught:
        pending.read()
    assert caught.value.keys == ("sample 3",)


def test_a_gradient_that_is_not_finite_stops_too():
    class Root(Distance):
        def forward(self, batch: Points) -> dict[str, Tensor]:
            return {"loss": self.at.abs().sqrt() + 0 * batch.x.sum()}  # infinite slope at 0

    with pytest.raises(NotFiniteError, match=r"at step 0 the loss is 0\.0 and the norm of its gradient"):
        steps(Root(), [points(1.0)], 1)


def test_validation_weighs_samples_and_leaves_the_weights_and_the_mode_of_training():
    class Half(Distance):
        def forward(self, batch: Points) -> dict[str, Tensor]:
            return {"loss": batch.x.mean() * (1 if not self.training else 100)}

    objective = Half()
    assert validate_objective(objective, [points(1.0, 2.0, 3.0), points(10.0)], CPU) == {"loss": pytest.approx(4.0)}

    class Mode(Distance):
        def forward(self, batch: Points) -> dict[str, Tensor]:
            assert self.training
            return super().forward(batch)

    objective, modes = Mode(), []
    optimizer = torch.optim.SGD(objective.parameters())
    for _ in train_steps(objective, repeat(points(1.0)), optimizer, lambda _: 0.1, range(2), CPU):
        modes.append(objective.eval())
    assert len(modes) == 2


def test_bf16_is_autocast():
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)
            self.types: list[torch.dtype] = []

        def forward(self, batch: Points) -> dict[str, Tensor]:
            product = self.layer(batch.x[:, None])
            self.types.append(product.dtype)
            return {"loss": product.float().square().mean()}

    objective = Product()
    for precision in ("fp32", "bf16"):
        compute = Compute(torch.device("cpu"), precision)
        optimizer = torch.optim.SGD(objective.parameters())
        list(train_steps(objective, repeat(points(1.0)), optimizer, lambda _: 0.1, range(1), compute))
    assert objective.types == [torch.float32, torch.bfloat16]
    assert objective.layer.weight.dtype == torch.float32


def test_the_norm_is_that_of_all_gradients():
    """Gradients of (3, 4) and (12): together a norm of 13."""
    module = torch.nn.ParameterList([torch.zeros(2), torch.zeros(1), torch.zeros(1)])
    module[0].grad, module[1].grad = torch.tensor([3.0, 4.0]), torch.tensor([12.0])  # the third has none
    assert float(compute_gradient_norm(module)) == 13
