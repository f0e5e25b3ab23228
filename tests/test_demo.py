"""`comodal demo`, small: every part runs, the controls stand beside the scores, and a second call changes nothing."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from comodal.cli.program import main
from comodal.demo import demo

SMALL = ("--videos", "30", "--steps", "4", "--scenes", "40", "--caption-steps", "4")
L3NET = {
    "l3net.avc.validation",
    *(f"l3net.vision.{system}" for system in ("trained", "untrained", "pixels")),
    *(f"l3net.audio.{system}" for system in ("trained", "untrained", "spectrogram", "log_mel")),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "SHORT_SCALE", replace(demo.SHORT_SCALE, audio=50, images=20, windows=1))
        assert main(["demo", str(folder), *SMALL]) == 0
        yield folder


def test_both_systems_are_scored_beside_their_controls(finished: Path) -> None:
    numbers = json.loads((finished / "results.json").read_text())
    assert set(numbers) >= L3NET
    for system in ("text_to_image", "untrained", "chance_level"):
        assert 0 <= numbers[f"vilbert.retrieval.{system}.r10"] <= 1
    assert not any("grounding" in name for name in numbers)
    assert (finished / "report.html").stat().st_size > 10_000


@pytest.mark.slow
def test_the_same_command_again_trains_nothing(finished: Path) -> None:
    files = sorted(finished.glob("*run/model/*.safetensors")) + sorted(finished.glob("*run/metrics.jsonl"))
    assert len(files) == 4
    before = [path.read_bytes() for path in files]
    assert main(["demo", str(finished), *SMALL]) == 0
    assert [path.read_bytes() for path in files] == before


def test_full_trains_with_the_objectives_of_the_papers() -> None:
    assert (demo.FULL_SCALE.objective, demo.FULL_SCALE.contrastive_weight) == ("avc", 0.0)
    assert demo.FULL_SCALE.task_epochs > 0
    assert demo.FULL_SCALE.steps > 2 * demo.SHORT_SCALE.steps
