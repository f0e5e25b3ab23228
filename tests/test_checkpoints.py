"""Checkpoints on a disk that is full, and what is left of those of a killed process."""

from pathlib import Path

import pytest
import torch

from comodal.errors import CheckpointError
from comodal.training.checkpoints import Checkpoints, State


def state(step: int) -> State:
    weights = {"w": torch.full((50_000,), float(step))}
    return State(step, 8 * step, 1.5, weights, {}, {"cpu": torch.get_rng_state()}, "fingerprint", {"loss": 0.1})


def test_the_last_two_are_kept_and_the_last_is_loaded(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.load() is None
    for step in (3, 20, 100):
        checkpoints.save(state(step))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000020.pt", "000000100.pt"]
    found = checkpoints.load()
    assert found.step == 100 and torch.equal(found.objective["w"], state(100).objective["w"])
    assert (found.samples, found.sums, found.fingerprint) == (800, {"loss": 0.1}, "fingerprint")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_disk_without_room_leaves_the_checkpoint_before(tmp_path: Path):
    """The file that would be written is /dev/full, which takes nothing: the error is the system's own."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    (tmp_path / ".000000002.pt.part").symlink_to("/dev/full")
    message = r"000000002.pt cannot be written \(.*No space left on device.*\); the checkpoint of step 1 is whole"
    with pytest.raises(CheckpointError, match=message):
        checkpoints.save(state(2))
    assert [path.name for path in tmp_path.iterdir()] == ["000000001.pt"]
    assert checkpoints.load().step == 1


def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    (tmp_path / ".000000002.pt.part").write_bytes(b"half of it")
    assert checkpoints.load().step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["000000001.pt"]


@pytest.mark.parametrize("damaged", [slice(0, -100), slice(0, 0), slice(100, None)])
def test_damage_is_named_with_the_one_before(tmp_path: Path, damaged: slice):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    path = tmp_path / "000000002.pt"
    path.write_bytes(path.read_bytes()[damaged])
    with pytest.raises(CheckpointError, match=r"000000002.pt is damaged .*; delete it to go on from 000000001.pt"):
        checkpoints.load()


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    path = tmp_path / "000000001.pt"
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((100,), 1.0).numpy().tobytes()) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load()
