"""Which parameters decay, what Adam does with the decay, and the learning rate of each step."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from comodal.hardware import Compute
from comodal.training.optimization import (
    make_adam,
    make_adamw,
    make_cosine_schedule,
    make_linear_schedule,
    make_parameter_groups,
)
from comodal.training.training_loop import train_steps


def test_kernels_decay_and_biases_and_norms_do_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.LayerNorm(2), nn.Conv1d(1, 1, 1))
    kernels, others = make_parameter_groups(net, 2e-5)
    assert kernels["weight_decay"] == 2e-5 and others["weight_decay"] == 0
    assert {id(p) for p in kernels["params"]} == {id(net[n].weight) for n in (0, 2, 4)}
    assert len(others["params"]) == 3 + 4  # three biases, and weight and bias of two norms


def test_frozen_parameters_are_left_out():
    net = nn.Linear(2, 2)
    net.weight.requires_grad_(False)
    kernels, others = make_parameter_groups(net, 0.1)
    assert kernels["params"] == [] and others["params"] == [net.bias]


def test_a_step_is_that_of_keras_l2_in_the_loss():
    """Keras adds c * sum(w^2) to the loss, the same step as a decay of 2c in the gradient, before the moments."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer, plain = make_adam(ours, 1e-2, weight_decay=0.2), torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(5):
        x = torch.randn(4, 3)
        ours(x).square().mean().backward()
        (theirs(x).square().mean() + 0.1 * theirs.weight.square().sum()).backward()
        for each in (optimizer, plain):
            each.step()
            each.zero_grad()
    assert_close(ours.state_dict(), theirs.state_dict())


def test_the_paper_keeps_the_learning_rate():
    rate = make_cosine_schedule(1e-4, 1000)
    assert {rate(step) for step in range(1000)} == {1e-4}


def test_a_rise_and_half_a_cosine():
    rate = make_cosine_schedule(1.0, 14, warmup_steps=4, min_lr_ratio=0.2)
    assert [rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4) == 1.0
    assert rate(9) == pytest.approx(0.6)  # the middle of the fall lies half way between 1 and 0.2
    assert rate(14) == pytest.approx(0.2)


def test_a_rise_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warmup_steps \(11\) must lie between 0 and steps \(10\)"):
        make_cosine_schedule(1.0, 10, warmup_steps=11)


def test_pretrained_weights_move_a_tenth_as_far_wrapped_or_not():
    """Adam's first step has the length of the rate, whatever the gradient; a wrapper changes names, not parameters."""

    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.fresh, self.known = nn.Linear(2, 1), nn.Linear(2, 1)

        def forward(self, batch):
            return {"loss": (self.fresh(batch.x) + self.known(batch.x)).sum()}

    class Wrapper(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, batch):
            return self.module(batch)

    class Numbers:
        x, keys = torch.ones(1, 2), ("one",)

        def to(self, _device):
            return self

    for wrap in (lambda module: module, Wrapper, lambda module: Wrapper(Wrapper(module))):
        objective = Loss()
        before = {name: value.clone() for name, value in objective.state_dict().items()}
        wrapped = wrap(objective)
        optimizer = make_adamw(
            wrapped, 1e-2, 0.0, pretrained=list(objective.known.parameters()), pretrained_lr_scale=0.1
        )
        list(
            train_steps(
                wrapped,
                iter([Numbers()]),
                optimizer,
                make_linear_schedule(1e-2, 1, 0),
                range(1),
                Compute(torch.device("cpu")),
            )
        )
        moved = {name: (value - before[name]).abs().max().item() for name, value in objective.state_dict().items()}
        assert [moved["fresh.weight"], moved["fresh.bias"]] == pytest.approx([1e-2, 1e-2], rel=1e-4)
        assert [moved["known.weight"], moved["known.bias"]] == pytest.approx([1e-3, 1e-3], rel=1e-4)


def test_what_has_one_dimension_does_not_decay():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2), nn.LayerNorm(2))
    decaying, others = make_adamw(net, 1.0, 0.01).param_groups
    assert [p.ndim for p in decaying["params"]] == [2, 2] and decaying["weight_decay"] == 0.01
    assert [p.ndim for p in others["params"]] == [1, 1, 1] and others["weight_decay"] == 0


def test_a_rise_and_a_straight_fall_worked_by_hand():
    rate = make_linear_schedule(1.0, 10, warmup_steps=2)
    assert [rate(step) for step in (0, 1, 2, 6, 9)] == pytest.approx([0.5, 1.0, 1.0, 0.5, 0.125])
    assert rate(10) == 0
