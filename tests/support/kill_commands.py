"""Kills a command at random moments, each time in a process of its own, runs it again, and compares what it leaves.

    python -m tests.support.kill_commands {share,embed,export,synthesize,train} FOLDER MOMENTS

Ends with an error where the second run does not end well, where what is there then differs from what one run makes, or
where something is left over. `train` is two trainings of one folder at once, of which one has to be refused. The
moments are drawn from the length of a second, warm run. A run that ends before its moment is not counted.
"""

import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from comodal.errors import DataError
from comodal.hub import share_model
from comodal.inference.embed_files import embed_audio
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.recipes.avc_pretraining import recipe
from comodal.runtimes.export import export
from comodal.synthetic.synthesize import synthesize
from comodal.training.run import train
from tests.support.small_world import write_world

MAX_RUNS = 20  # for each moment
REFUSED = 7  # the exit status of a child that was told that another one is at work
WORLD = {"videos": 3, "seconds": 1.0, "audio": 0, "images": 3, "scenes": 3, "side": 32, "audio_seconds": 1.0}
RUN = {
    "variant": "small",
    "width": 4,
    "image_size": 16,
    "batch_size": 8,
    "validation_pairs": 16,
    "steps": 12,
    "workers": 0,
}
OPTIONS = {"device": "cpu", "log_every": 1, "validate_every": 6, "checkpoint_minutes": 0.0, "precision": "fp32"}
Work = Callable[[], object]


def start(work: Work) -> int:
    """A child that does this, in a group of its own; returns its process id."""
    child = os.fork()
    if child:
        return child
    try:
        os.setpgid(0, 0)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            work()
        os._exit(0)
    except DataError as error:
        if "another command" in str(error):
            os._exit(REFUSED)
        traceback.print_exc()
    finally:  # never back into the parent's code
        if sys.exc_info()[0] is not None:
            traceback.print_exc()
        os._exit(1)


def status_of(child: int) -> int:
    """How a child ended: its exit status, or the signal with a minus."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_after(work: Work, seconds: float) -> bool:
    """Lets the system kill a child that does this; its own children have to end by themselves.

    Returns:
        Whether the child was killed, and had not ended before.
    """
    child = start(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return status_of(child) == -signal.SIGKILL


def contents(folder: Path) -> dict[str, object]:
    """What is in a folder, as far as two runs must agree on it."""
    found: dict[str, object] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or name == ".lock" or name.startswith("tensorboard/") or path.name == "environment.json":
            continue
        if path.name == "export.json":
            files = json.loads(path.read_text())["files"]
            assert all(zlib.crc32((path.parent / file).read_bytes()) == files[file] for file in files), name
            found[name] = sorted(files)
        elif path.suffix == ".pt2":  # holds the time at which it was written
            found[name] = None
        elif path.suffix == ".safetensors":
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(path).items()}
        elif path.suffix in {".pt", ".jsonl"} and folder.name == "run":
            found[name] = losses(path) if path.suffix == ".jsonl" else None  # seconds differ
        elif folder.name == "run" and path.name == "config.json":
            found[name] = json.loads(path.read_text())["config"]
        else:
            found[name] = path.read_bytes()
    return found


def losses(path: Path) -> list[tuple]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [(line["split"], line["step"], line["loss"]) for line in lines]


def prepare(name: str, folder: Path) -> tuple[Callable[[Path], Work], str]:
    """What makes the work in a folder, and the name of the folder."""
    model = folder / "model"
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), model, {})
    if name == "share":
        (model / "large.txt").write_bytes(bytes(5_000_000))
        return lambda out: lambda: share_model(model, out), "shared"
    if name == "export":
        return lambda out: lambda: export(model, "torch", out), "exported"
    if name == "synthesize":
        return lambda out: lambda: synthesize(out, workers=2, **WORLD), "world"
    if name == "embed":
        (folder / "sounds").mkdir()
        rng = np.random.default_rng(0)
        for number in range(8):
            soundfile.write(folder / "sounds" / f"{number}.wav", 0.1 * rng.normal(size=48_000 * 3), 48_000)
        return (
            lambda out: lambda: embed_audio([folder / "sounds"], model, out, workers=2),
            "vectors",
        )
    write_world(folder / "shards" / "train", 12)
    write_world(folder / "shards" / "validation", 6, seed=1)
    values = {**RUN, "data": folder / "shards"}
    return lambda out: lambda: train(recipe, values, out, resume=True, **OPTIONS), "run"


def kill_two(work: Work, seconds: float) -> bool:
    """Two at once in one folder: the first to end is refused, and the other works on until it is killed or done."""
    children = {start(work), start(work)}
    ended, status = os.wait()
    assert ended in children and os.waitstatus_to_exitcode(status) == REFUSED, status
    (other,) = children - {ended}
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(other, signal.SIGKILL)
    status = status_of(other)
    assert status in (0, -signal.SIGKILL)
    return status == -signal.SIGKILL


def timed(work: Work) -> float:
    """The seconds that a whole run of this takes."""
    began = time.monotonic()
    assert status_of(start(work)) == 0, "the run that is compared with"
    return time.monotonic() - began


def main(name: str, folder: Path, moments: int) -> None:
    work_in, called = prepare(name, folder)
    whole = folder / "whole" / called
    timed(work_in(whole))
    took, wanted, rng = timed(work_in(folder / "warm" / called)), contents(whole), random.Random(0)
    killed = runs = 0
    while killed < moments:
        out = folder / f"killed{runs}" / called
        seconds = rng.uniform(0, took)
        was_killed = (kill_two if name == "train" else kill_after)(work_in(out), seconds)
        if was_killed and killed % 3 == 0:  # a second time, while it goes on
            kill_after(work_in(out), seconds / 2)
        where, waited = f"{name}, killed after {seconds:.3f} of {took:.3f} s", time.monotonic()
        while (
            status := status_of(start(work_in(out)))
        ) == REFUSED:  # a worker that ends half a second later has the lock
            assert time.monotonic() - waited < 60, f"{where}: the lock stays"
            time.sleep(0.2)
        if not (name == "share" and status == 1 and (out / "README.md").exists()):  # it was finished when it was killed
            assert status == 0, where
        found = contents(out)
        differing = [one for one in found.keys() | wanted.keys() if found.get(one) != wanted.get(one)]
        assert not differing, f"{where}: {differing}"
        shutil.rmtree(out)
        killed, runs = killed + was_killed, runs + 1
        assert runs < MAX_RUNS * moments, f"{name}: only {killed} of {runs} runs were killed before they ended"
    print(f"{killed} of {runs} runs were killed")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
