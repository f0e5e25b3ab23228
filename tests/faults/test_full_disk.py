"""A disk that is full in the middle of a command: the file that could not be written is named, nothing half-written is
left, and the same command finishes when there is room."""

import contextlib
import io
import os
import re
import resource
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from comodal.cli.program import main
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.synthetic.scenes.media_writers import write_image_file, write_video_file, write_wav_file

Ended = tuple[int, str]


def run_in_child(words: list[str], max_file_bytes: int = 0) -> Ended:
    """The exit status of a command in a process of its own, and what it prints as errors.

    The system lets no file of the command and of its workers grow beyond `max_file_bytes`; 0 for no limit.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        status, said = 99, io.StringIO()
        try:
            if max_file_bytes:
                resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
                status = main(words)
        except BaseException:  # noqa: BLE001 (the parent looks at it)
            said.write(traceback.format_exc())
        os.write(writing, said.getvalue().encode("utf-8", "backslashreplace")[-30_000:])
        os._exit(status)
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8", errors="replace") as pipe:
        said_there = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said_there


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), folder / "model", {})
    (folder / "sounds").mkdir()
    rng = np.random.default_rng(0)
    for name, seconds in (("a", 1), ("b", 3), ("c", 1)):
        soundfile.write(folder / "sounds" / f"{name}.wav", 0.1 * rng.normal(size=48_000 * seconds), 48_000)
    return folder


WORLD = "--videos 2 --seconds 1 --audio 0 --images 2 --scenes 2 --side 32 --audio-seconds 1 --workers 1"
COMMANDS: dict[str, tuple[Callable[[Path, Path], list[str]], int, str]] = {
    "share": (lambda at, out: ["share", str(at / "model"), str(out)], 8_000, r"out/model\.safetensors"),
    "export": (
        lambda at, out: ["export", str(at / "model"), "--to", "torch", "--only", "image", "--out", str(out)],
        20_000,
        r"out/image\.pt2",
    ),
    "export onnx": (
        lambda at, out: ["export", str(at / "model"), "--to", "onnx", "--only", "image", "--out", str(out)],
        *(3_000, r"out/image\.onnx"),
    ),
    "synthesize": (lambda _, out: ["synthesize", str(out), *WORLD.split()], 1_500, r"out/videos/video-0000\d\.mp4"),
    "embed": (
        lambda at, out: [
            *("embed", "audio", str(at / "sounds"), "--model", str(at / "model"), "--out", str(out)),
            *("--workers", "1", "--hop_seconds", "0.5"),
        ],
        4_000,
        r"out/b\.npz",
    ),
}

QUICK = ("share", "synthesize")


@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in COMMANDS]
)
def test_a_full_disk_is_one_sentence_and_the_same_command_finishes(model: Path, tmp_path: Path, command: str):
    words_of, limit, name = COMMANDS[command]
    words = words_of(model, tmp_path / "out")
    status, said = run_in_child(words, limit)
    errors = [line for line in said.splitlines() if line.startswith("comodal: error: ")]
    assert status == 1 and "Traceback" not in said and len(errors) == 1, said
    assert re.search(name, errors[0]) and "no file of this size" in errors[0], said
    assert not [path for path in tmp_path.rglob("*.part") if path.name != ".begun.part"]
    status, said = run_in_child(words)
    assert status == 0, said
    assert not list(tmp_path.rglob("*.part"))
    if not command.startswith("export"):  # these hold the time at which they were written
        assert run_in_child(words_of(model, tmp_path / "whole" / "out"))[0] == 0
        assert list_files(tmp_path / "out") == list_files(tmp_path / "whole" / "out") != {}


def list_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_writer_of_synthetic_media_names_its_file(tmp_path: Path):
    """libsndfile, libjpeg, libpng and FFmpeg tell of a full disk in four ways."""
    pixels = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)
    sound = np.zeros(100_000, np.float32)
    writers: dict[str, Callable[[Path], None]] = {
        "a.wav": lambda path: write_wav_file(path, sound, 48_000),
        "a.jpg": lambda path: write_image_file(path, pixels),
        "a.png": lambda path: write_image_file(path, pixels),
        "a.mp4": lambda path: write_video_file(path, [pixels] * 20, 10.0, sound, 48_000, 256),
    }
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        for name, write in writers.items():
            with pytest.raises(OSError) as caught:
                write(tmp_path / name)
            assert caught.value.filename == str(tmp_path / name), name
            assert not list(tmp_path.iterdir()), name
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
