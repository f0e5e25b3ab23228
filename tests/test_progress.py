"""Progress without a terminal: lines in time, an estimate from the rate so far, nothing where nobody is to speak."""

import re
import time
from types import SimpleNamespace

import pytest

from comodal import progress
from comodal.progress import Progress, track_progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that is set by hand."""
    hands = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: hands.now)
    return hands


@pytest.mark.parametrize(
    ("total", "before", "done", "seconds", "line"),
    [
        (10, 0, 0, 7, "clips 0 of 10, after 0:00:07"),
        (10, 0, 4, 60, "clips 4 of 10, 0:01:30 left"),  # 15 s each, 6 to do
        (10, 2, 4, 60, "clips 4 of 10, 0:03:00 left"),  # 30 s each, 6 to do: two were done before
        (1234, 0, 1234, 3661, "clips 1,234 of 1,234, in 1:01:01"),
        (1.0, 0, 0.25, 30, "clips 25%, 0:01:30 left"),
    ],
)
def test_how_long_it_takes_yet(clock: SimpleNamespace, total: float, before: int, done: float, seconds: int, line: str):
    shown = Progress("clips", total, before)
    shown.show(done)
    clock.now += seconds
    assert shown.format_line() == line
    shown.show(done, "loss 0.5")
    assert (
        shown.format_line() == line.replace(", ", ", loss 0.5, ", 1)
        if total != 1234
        else "loss 0.5" in shown.format_line()
    )


def test_a_line_appears_although_no_item_is_done(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    monkeypatch.setattr(progress, "LOG_LINE_SECONDS", 0.05)
    said = ""
    with Progress("clips", 3):
        for _ in range(500):
            said += capsys.readouterr().err
            if said.count("clips 0 of 3, after 0:00:0") > 1:
                break
            time.sleep(0.01)
        else:
            raise AssertionError(said)


def test_the_first_item_and_the_end_have_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(progress, "REFRESH_SECONDS", 0.01)
    for _ in track_progress(range(3), "clips"):
        time.sleep(0.1)
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"clips 1 of 3, 0:00:0\d left", lines[0]), lines
    assert re.fullmatch(r"clips 3 of 3, in 0:00:0\d", lines[-1]), lines


def test_what_is_polled_is_shown_at_the_end(capsys: pytest.CaptureFixture):
    with Progress("clips", 8, 2, lambda: (5, "2.0 a second")):
        pass
    assert re.fullmatch(r"clips 5 of 8, 2.0 a second, 0:00:0\d left\n", capsys.readouterr().err)


def test_nothing_is_said_by_the_other_processes_or_without_items(capsys: pytest.CaptureFixture):
    with Progress("step", 10, is_shown=False) as silent:
        silent.show(10, "loss 0.25")
        silent.print_message("done")
    with Progress("step", 0):
        pass
    assert capsys.readouterr().err == ""


def test_nothing_is_said_of_what_failed(capsys: pytest.CaptureFixture):
    with pytest.raises(KeyError), Progress("step", 10) as failing:
        failing.show(5)
        raise KeyError
    assert "of 10" not in capsys.readouterr().err
