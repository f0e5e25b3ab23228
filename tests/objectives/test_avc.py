"""The loss and the accuracy of audio-visual correspondence."""

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from comodal.data.batch import AudioVisualBatch
from comodal.objectives.avc import AudioVisualCorrespondence


class Output(NamedTuple):
    logits: Tensor


class Told(nn.Module):
    """Answers what it is told to."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, image: Tensor, sound: Tensor) -> Output:
        assert len(image) == len(sound)
        return Output(self.logits)


def batch(together: list[bool]) -> AudioVisualBatch:
    size = len(together)
    image = torch.zeros(size, 3, 2, 2, dtype=torch.uint8)
    return AudioVisualBatch(image, torch.zeros(size, 4), torch.tensor(together), torch.arange(size), ("key",) * size)


def test_no_opinion_costs_the_log_of_two():
    assert AudioVisualCorrespondence(Told([[0.0, 0.0]] * 4))(batch([True, False] * 2))["loss"].item() == pytest.approx(
        math.log(2)
    )


def test_the_second_score_is_for_together():
    """Scores 0 and log 3 are odds of 1 to 3: right costs -log(3/4), wrong -log(1/4)."""
    metrics = AudioVisualCorrespondence(Told([[0.0, math.log(3)]] * 4))(batch([True, True, True, False]))
    assert metrics["loss"].item() == pytest.approx(-(3 * math.log(3 / 4) + math.log(1 / 4)) / 4)
    assert metrics["accuracy"].item() == 0.75


def test_a_batch_moves_whole():
    moved = batch([True, False]).to(torch.device("meta"))
    assert {moved.image.device.type, moved.audio.device.type, moved.is_match.device.type} == {"meta"}
    assert moved.keys == ("key", "key")
