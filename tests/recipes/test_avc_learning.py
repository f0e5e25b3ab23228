"""Correspondence can be learnt from pairs, and only from what is in them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from comodal.data.batch import AudioVisualBatch
from comodal.data.loader import Loader
from comodal.data.shards.clip_dataset import Augmentation, ClipPairDataset
from comodal.data.shards.pair_sampler import PairSampler
from comodal.data.shards.shard_reader import ShardReader
from comodal.hardware import Compute
from comodal.objectives.avc import AudioVisualCorrespondence
from comodal.recipes.avc_pretraining import recipe
from comodal.text_files import read_log
from comodal.training.optimization import make_adam
from comodal.training.run import train
from comodal.training.training_loop import train_steps, validate_objective
from tests.support.small_world import write_world

CPU = Compute(torch.device("cpu"))
RATE, STEPS, BATCH = 8_000, 100, 32
VALIDATION = 512


class Output(NamedTuple):
    logits: Tensor


class Ear(nn.Module):
    """Knows how bright a picture is and where in the spectrum a sound is, and has to find out what one has to do with
    the other."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(9, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, image: Tensor, sound: Tensor) -> Output:
        light = image.float().mean((1, 2, 3)) / 255
        power = torch.fft.rfft(sound).abs().square()
        pitch = (power * torch.linspace(0, 1, power.shape[1])).sum(1) / power.sum(1)
        waves = torch.arange(1, 5)
        seen = torch.cat([torch.cos(light[:, None] * waves * 3), 4 * light[:, None]], 1)
        return Output(self.net(torch.cat([seen, torch.cos(pitch[:, None] * waves * 9)], 1)))


def shuffled(batches: Iterator[AudioVisualBatch]) -> Iterator[AudioVisualBatch]:
    """The control: every pair has the sound of another, drawn in the same way."""
    for batch in batches:
        yield AudioVisualBatch(batch.image, batch.audio.roll(1, 0), batch.is_match, batch.source_ids, batch.keys)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder / "train", 60, rate=RATE)
    write_world(folder / "validation", 60, rate=RATE, seed=1)
    return folder


def accuracy_after_training(world: Path, control: bool) -> float:
    torch.manual_seed(0)
    objective = AudioVisualCorrespondence(Ear())
    train_shards, held_out = ShardReader(world / "train"), ShardReader(world / "validation")
    mild = Augmentation(brightness_jitter=0.02, saturation_jitter=0.1)
    pairs = Loader(
        ClipPairDataset(train_shards, PairSampler(train_shards, 0), 28, RATE, mild), BATCH, 0
    ).iterate_batches()
    fixed = Loader(
        ClipPairDataset(held_out, PairSampler(held_out, 1), 28, RATE, None), BATCH, 0, length=VALIDATION
    ).iterate_batches()
    if control:
        pairs, fixed = shuffled(pairs), shuffled(fixed)
    for _ in train_steps(objective, pairs, make_adam(objective, 1e-2, 0.0), lambda _: 1e-2, range(STEPS), CPU):
        pass
    return validate_objective(objective, fixed, CPU)["accuracy"]


def test_a_small_network_learns_what_belongs_together(world):
    """A few of a hundred pairs that are apart are as alike as pairs that are together, so 100 % is not there."""
    assert accuracy_after_training(world, control=False) > 0.9


@pytest.mark.slow
def test_with_the_sounds_shuffled_it_stays_at_chance(world):
    """4.5 standard deviations of 512 throws of a coin."""
    assert abs(accuracy_after_training(world, control=True) - 0.5) < 4.5 * (0.25 / VALIDATION) ** 0.5


@pytest.mark.slow
def test_l3net_learns_what_belongs_together(tmp_path: Path):
    write_world(tmp_path / "train", 200)
    write_world(tmp_path / "validation", 60, seed=1)
    parameters = {"data": tmp_path, "variant": "small", "width": 8, "image_size": 28, "steps": 600, "batch_size": 32}
    parameters |= {
        "learning_rate": 1e-3,
        "brightness_jitter": 0.02,
        "saturation_jitter": 0.1,
        "validation_pairs": 512,
        "workers": 1,
    }
    assert train(recipe, parameters, tmp_path / "run", device="cpu", validate_every=100) == 0
    last = [line for line in read_log(tmp_path / "run" / "metrics.jsonl") if line["split"] == "validation"][-1]
    assert last["accuracy"] > 0.9
