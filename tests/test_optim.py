"""Which parameters decay, what Adam does with the decay, and the learning rate of each step."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from comodal.train.optim import adam, parameter_groups, schedule


def test_kernels_decay_and_biases_and_norms_do_not():
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2), nn.LayerNorm(2), nn.Conv1d(1, 1, 1))
    kernels, others = parameter_groups(net, 2e-5)
    assert kernels["weight_decay"] == 2e-5 and others["weight_decay"] == 0
    assert {id(p) for p in kernels["params"]} == {id(net[n].weight) for n in (0, 2, 4)}
    assert len(others["params"]) == 3 + 4  # three biases, and weight and bias of two norms


def test_frozen_parameters_are_left_out():
    net = nn.Linear(2, 2)
    net.weight.requires_grad_(False)
    kernels, others = parameter_groups(net, 0.1)
    assert kernels["params"] == [] and others["params"] == [net.bias]


def test_a_step_is_that_of_keras_l2_in_the_loss():
    """Keras adds c * sum(w^2) to the loss, the same step as a decay of 2c in the gradient, before the moments."""
    torch.manual_seed(0)
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer, plain = adam(ours, 1e-2, weight_decay=0.2), torch.optim.Adam(theirs.parameters(), lr=1e-2)
    for _ in range(5):
        x = torch.randn(4, 3)
        ours(x).square().mean().backward()
        (theirs(x).square().mean() + 0.1 * theirs.weight.square().sum()).backward()
        for each in (optimizer, plain):
            each.step()
            each.zero_grad()
    assert_close(ours.state_dict(), theirs.state_dict())


def test_the_paper_keeps_the_learning_rate():
    rate = schedule(1e-4, 1000)
    assert {rate(step) for step in range(1000)} == {1e-4}


def test_a_rise_and_half_a_cosine():
    rate = schedule(1.0, 14, warm_up_steps=4, final_fraction=0.2)
    assert [rate(step) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert rate(4) == 1.0
    assert rate(9) == pytest.approx(0.6)  # the middle of the fall lies half way between 1 and 0.2
    assert rate(14) == pytest.approx(0.2)


def test_a_rise_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"warm_up_steps \(11\) must lie between 0 and steps \(10\)"):
        schedule(1.0, 10, warm_up_steps=11)
