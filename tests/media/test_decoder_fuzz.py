"""Files that are damaged at random are read or refused: no crash, no hang, no blow-up of memory.

The reading happens in a process of its own, so that a crash of FFmpeg fails the test and not the test run. The same
file is that process: `python test_decoder_fuzz.py FOLDER FIRST COUNT` prints what became of each damaged file.
"""

import contextlib
import resource
import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from comodal.errors import MediaError
from comodal.media.audio import stream_audio
from comodal.media.video import iterate_frames, read_clip
from tests.support.paths import ROOT
from tests.support.synthetic_media import tone, write_video

LIMIT_BYTES = 4 << 30  # of address space; torch is not imported
MAX_PEAK_BYTES = 700 << 20
MAX_SECONDS = 5.0  # for one file of 40 kB on a busy machine
EXTREMES = (0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 100_000, 65_535)


def write_whole_files(folder: Path) -> list[Path]:
    """Small good files of the usual formats."""
    sound = tone(1.5, 16000, silent_seconds=0.1)
    seconds = tuple(k / 25 for k in range(36))
    common = {"picture_seconds": seconds, "sound": sound, "sound_rate": 16000, "size": (96, 64)}
    return [
        write_video(folder / "h264.mp4", **common, container_options={"movflags": "faststart"}),
        write_video(folder / "h264.mkv", **common),
        write_video(folder / "hevc.mov", **common, codec="libx265", codec_options={"x265-params": "log-level=none"}),
        write_video(
            folder / "vp9.webm",
            **common | {"sound_rate": 48000, "sound": tone(1.5, 48000, 0.1)},
            codec="libvpx-vp9",
            sound_codec="libopus",
        ),
        write_video(folder / "mpeg4.avi", **common, codec="mpeg4", ticks=25, sound_codec="libmp3lame"),
        write_video(
            folder / "mpeg1.mpg",
            **common | {"sound_rate": 44100, "sound": tone(1.5, 44100, 0.1)},
            codec="mpeg1video",
            ticks=25,
            sound_codec="mp2",
        ),
        write_video(folder / "h264.ts", **common),
        write_video(folder / "h264.flv", **common | {"sound_rate": 44100, "sound": tone(1.5, 44100, 0.1)}),
        write_video(folder / "qtrle.mov", **common, codec="qtrle", pixel_format="argb", sound_codec="pcm_s16le"),
    ]


def damage(data: bytes, seed: int) -> bytes:
    """A damaged copy: bits flipped, bytes overwritten with extreme numbers, parts cut, zeroed, moved or doubled."""
    rng = np.random.default_rng(seed)
    copy = bytearray(data)
    header = rng.random() < 0.5  # half of the damage goes to where headers are
    for _ in range(int(rng.integers(1, 9))):
        place = int(rng.integers(min(len(copy), 2048 if header else len(copy))))
        kind = rng.integers(6)
        if kind <= 1:
            copy[place] ^= 1 << int(rng.integers(8))
        elif kind == 2:
            size = int(rng.choice([1, 2, 4, 8]))
            number = int(rng.choice(EXTREMES)) & ((1 << 8 * size) - 1)
            copy[place : place + size] = number.to_bytes(size, "big" if rng.random() < 0.5 else "little")
        elif kind == 3:
            copy[place : place + int(rng.integers(1, 600))] = bytes(int(rng.integers(1, 600)))
        elif kind == 4:
            part = copy[place : place + int(rng.integers(1, 2000))]
            where = int(rng.integers(len(copy)))
            copy[where:where] = part
        else:
            del copy[place : place + int(rng.integers(1, 200))]
    if rng.random() < 0.25:
        del copy[int(rng.integers(len(copy))) :]
    return bytes(copy)


def peak_bytes() -> int:
    """Of this process since it began; ru_maxrss would count what the process that started it held."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))


def outcome(path: Path) -> str:
    """Read a file in all ways; says what `read_clip` made of it."""
    with contextlib.suppress(MediaError):
        list(islice(iterate_frames(path, 5.0), 100))
    with contextlib.suppress(MediaError):
        list(islice(stream_audio(path), 10))
    try:
        clip = read_clip(path)
    except MediaError as error:
        return str(error.reason)
    assert clip.frames and len(clip.frames) == len(clip.frame_seconds) <= 50
    assert 1.0 <= clip.seconds <= 10.0 and np.isfinite(clip.audio).all()
    return "read"


def main(folder: Path, first: int, count: int) -> None:
    """Damage, read and report `count` files."""
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_BYTES, LIMIT_BYTES))
    whole = [(path.suffix, path.read_bytes()) for path in write_whole_files(folder)]
    for seed in range(first, first + count):
        suffix, data = whole[seed % len(whole)]
        path = folder / f"damaged{suffix}"
        path.write_bytes(damage(data, seed))
        print(seed, end=" ", flush=True)
        began = time.perf_counter()
        result = outcome(path)
        took = time.perf_counter() - began
        peak = peak_bytes()
        assert took < MAX_SECONDS, f"{took:.1f} s for damaged file {seed}"
        assert peak < MAX_PEAK_BYTES, f"{peak >> 20} MB for damaged file {seed}"
        print(result, flush=True)


def run_in_process(first: int, count: int, limit_seconds: float) -> dict[str, int]:
    """How often each outcome came; fails on a crash, a hang or any error that is not a MediaError."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", __spec__.name, folder, str(first), str(count)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=limit_seconds, check=False)
    assert done.returncode == 0, f"damaged file {done.stdout[-100:].splitlines()[-1]}: {done.stderr[-2000:]}"
    outcomes = [line.split(" ", 1)[1] for line in done.stdout.splitlines()]
    assert len(outcomes) == count
    return {result: outcomes.count(result) for result in set(outcomes)}


def test_damaged_files_are_read_or_refused():
    outcomes = run_in_process(first=0, count=135, limit_seconds=120)
    assert outcomes.get("read", 0) >= 10, "the damage is so heavy that nothing but refusals is tested"
    assert outcomes.get("truncated", 0) >= 5, outcomes


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("first", range(1000, 9000, 1000))
def test_many_damaged_files_are_read_or_refused(first: int):
    run_in_process(first, count=1000, limit_seconds=1800)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
