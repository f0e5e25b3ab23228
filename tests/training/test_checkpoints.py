"""Checkpoints on a disk that is full, and what is left of those of a killed process."""

from pathlib import Path

import pytest
import torch

from comodal.errors import CheckpointError
from comodal.files import make_temporary_path
from comodal.training.checkpoints import Checkpoints, TrainingState


def state(step: int) -> TrainingState:
    weights = {"w": torch.full((50_000,), float(step))}
    return TrainingState(step, 8 * step, 1.5, weights, {}, {"cpu": torch.get_rng_state()}, "fingerprint", {"loss": 0.1})


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
    make_temporary_path(tmp_path / "000000002.pt").symlink_to("/dev/full")
    message = r"000000002.pt cannot be written \(.*No space left on device.*\); the checkpoint of step 1 is complete"
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
def test_a_damaged_one_is_skipped_with_a_warning(tmp_path: Path, damaged: slice, capsys: pytest.CaptureFixture[str]):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    checkpoints.save(state(2))
    path = tmp_path / "000000002.pt"
    path.write_bytes(path.read_bytes()[damaged])
    assert checkpoints.load().step == 1
    assert "warning" in (said := capsys.readouterr().err) and str(path) in said
    for step in (3, 4, 5):  # the run goes on, and in the end nothing of the damaged one is left
        checkpoints.save(state(step))
    assert [path.name for path in checkpoints.list_files()] == ["000000004.pt", "000000005.pt"]


def test_a_damaged_one_is_no_reason_to_delete_the_whole_ones(tmp_path: Path):
    """The run that went on from step 1 comes to step 2 before it comes to the step of the damaged file."""
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    (tmp_path / "000000009.pt").write_bytes(b"damaged")
    checkpoints.save(state(2))
    assert [path.name for path in checkpoints.list_files()] == ["000000001.pt", "000000002.pt"]


def test_when_all_are_damaged_that_is_an_error(tmp_path: Path):
    for name in ("000000001.pt", "000000002.pt"):
        (tmp_path / name).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"000000001.pt is damaged"):
        Checkpoints(tmp_path).load()


def test_a_flipped_bit_is_noticed(tmp_path: Path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state(1))
    path = tmp_path / "000000001.pt"
    data = bytearray(path.read_bytes())
    data[data.index(torch.full((100,), 1.0).numpy().tobytes()) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoints.load()
