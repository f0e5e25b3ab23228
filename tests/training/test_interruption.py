"""A signal to every process of a job, as schedulers and terminals send it, does not take the data workers first."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from comodal.text_files import read_log
from comodal.training.interruption import InterruptHandler
from tests.support.small_world import write_world

WORDS = "--variant small --width 4 --image_size 16 --batch_size 8 --validation_pairs 0 --steps 100000 --device cpu"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_the_whole_group_saves_and_leaves(tmp_path: Path, number: signal.Signals, status: int):
    write_world(tmp_path / "data" / "train", 8)
    out = tmp_path / "run"
    command = [sys.executable, "-m", "comodal", "train", "l3net", "--data", str(tmp_path / "data"), "--out", str(out)]
    command += [*WORDS.split(), "--log_every", "1", "--workers", "2"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    until = time.monotonic() + 120
    while not read_log(out / "metrics.jsonl") and run.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    os.killpg(run.pid, number)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == status, said
    assert "and saved; continue with --resume" in said and "error" not in said and "Traceback" not in said
    steps = [line["step"] for line in read_log(out / "metrics.jsonl")]
    assert [path.name for path in (out / "checkpoints").iterdir()] == [f"{steps[-1]:09d}.pt"]


def test_a_signal_is_a_wish_and_a_second_ctrl_c_is_not():
    before = signal.getsignal(signal.SIGINT)
    with InterruptHandler() as stop:
        assert stop.get_agreed_signal(torch.device("cpu")) == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.get_agreed_signal(torch.device("cpu")) == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_outside_the_main_thread_signals_are_left_alone():
    found = []

    def look() -> None:
        with InterruptHandler():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]
