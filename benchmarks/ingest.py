"""How fast videos become clips: decoding, scaling, JPEG and FLAC of ten seconds, on one core.

Prints times real time per core for 360p and 720p H.264 with 25, 5 and 1 pictures a second, each beside the plain route
(PyAV's `to_ndarray(format="rgb24")`, Pillow's resize and JPEG, swresample, the same FLAC) and beside decoding alone,
the most that any route can reach (all pictures and sound, nothing kept), timed in turn in one run. With --ffmpeg also
beside one ffmpeg process for the clip, which writes the same JPEG and FLAC files; its start is part of its time.

    python benchmarks/ingest.py [--video FILE ...] [--rate 5 ...] [--repeats 5] [--ffmpeg PATH] [--out results.json]
"""

import argparse
import io
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from comodal.media.audio import encode_flac
from comodal.media.video import read_clip
from machine import describe_machine, print_ratio, save

SECONDS = 10.0
TARGET_RATE, TARGET = 5.0, 0.8  # of the decode-only rate
RATES = (25.0, 5.0, 1.0)
SIZES = {"360p": (640, 360), "720p": (1280, 720)}
# Bits a second of YouTube's H.264 at these sizes (formats 134 and 136), roughly: what data sets of videos consist of.
BIT_RATES = {"360p": 600_000, "720p": 2_000_000}


def make_video(path: Path, width: int, height: int, bit_rate: int) -> Path:
    """Ten seconds of a photograph-like picture that pans, with something that moves, and noise for sound."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 20, width // 10, 3)).astype(np.uint8)
    scene = np.asarray(Image.fromarray(coarse).resize((2 * width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    scene = np.clip(scene + rng.normal(0, 6, scene.shape), 0, 255).astype(np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "medium"})
        video.width, video.height, video.pix_fmt, video.bit_rate = width, height, "yuv420p", bit_rate
        audio = container.add_stream("aac", rate=44100, layout="stereo")
        for number in range(250):
            picture = scene[:, number * 3 : number * 3 + width].copy()
            left = (number * 7) % (width - 80)
            picture[height // 3 : height // 3 + 80, left : left + 80] = (250, 60, 40)
            frame = av.VideoFrame.from_ndarray(picture)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        sound = rng.normal(0, 0.1, (2, 441_000)).astype(np.float32)
        for first in range(0, 441_000, 1024):
            block = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound[:, first : first + 1024]), "fltp", "stereo")
            block.sample_rate, block.pts, block.time_base = 44100, first, Fraction(1, 44100)
            container.mux(audio.encode(block))
        container.mux(audio.encode(None))
    return path


def ours(path: Path, rate: float) -> int:
    clip = read_clip(path, seconds=SECONDS, frames_per_second=rate)
    return len(encode_flac(clip.audio, clip.sample_rate)) + sum(map(len, clip.frames))


def plain(path: Path, rate: float) -> int:
    """What one writes first: every kept picture through RGB, the sound through swresample."""
    size, following, sounds = 0, 0, []
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count = 1
        resampler = av.AudioResampler("flt", "mono", 48000)
        for frame in container.decode(video, audio):
            if frame.time >= SECONDS:
                continue
            if isinstance(frame, av.AudioFrame):
                sounds += [block.to_ndarray()[0] for block in resampler.resample(frame)]
            elif frame.time >= following / rate - 1e-3:
                following += 1
                image, memory = Image.fromarray(frame.to_ndarray(format="rgb24")), io.BytesIO()
                scale = 256 / min(image.size)
                new_size = (round(image.width * scale), round(image.height * scale))
                image.resize(new_size, Image.Resampling.BILINEAR).save(memory, "JPEG", quality=85)
                size += memory.tell()
    return size + len(encode_flac(np.concatenate(sounds), 48000))


def decode_only(path: Path, _rate: float) -> int:
    """All pictures and blocks of sound, whatever the rate; returns how many."""
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        video.codec_context.thread_count = 1
        return sum(frame.time < SECONDS for frame in container.decode(video, audio))


def ffmpeg_route(program: str) -> Callable[[Path, float], int]:
    """One process with one thread that writes the images and the audio of a clip."""

    def write(path: Path, rate: float) -> int:
        with tempfile.TemporaryDirectory() as folder:
            scale = f"fps={rate:g},scale='if(gt(iw,ih),-2,256)':'if(gt(iw,ih),256,-2)'"
            command = [program, "-v", "error", "-nostdin", "-threads", "1", "-t", f"{SECONDS:g}", "-i", str(path)]
            command += ["-map", "0:v:0", "-vf", scale, "-q:v", "4", "-threads", "1", f"{folder}/%04d.jpg"]
            command += ["-map", "0:a:0", "-ac", "1", "-ar", "48000", "-sample_fmt", "s16", f"{folder}/audio.flac"]
            subprocess.run(command, check=True)
            return sum(file.stat().st_size for file in Path(folder).iterdir())

    return write


def read_cpu_seconds() -> float:
    """Processor time of this process and of the processes that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seconds_of(work: Callable[[Path, float], int], path: Path, rate: float) -> float:
    began = read_cpu_seconds()
    work(path, rate)
    return read_cpu_seconds() - began


def measure(path: Path, rate: float, repeats: int, ffmpeg: str | None) -> dict[str, float]:
    """Medians of `repeats` runs of each route, in turn; processor time, so that a busy machine matters less."""
    works = [ours, plain, decode_only, *([ffmpeg_route(ffmpeg)] if ffmpeg else [])]
    for work in works:
        work(path, rate)  # to warm up
    times = [[seconds_of(work, path, rate) for work in works] for _ in range(repeats)]
    length = read_clip(path, seconds=SECONDS, frames_per_second=1.0).seconds
    ratios = sorted(theirs / mine for mine, theirs, *_ in times)
    numbers = {
        "times_real_time": length / statistics.median(mine for mine, *_ in times),
        "plain_times_real_time": length / statistics.median(theirs for _, theirs, *_ in times),
        "ratio": statistics.median(ratios),
        "of_decode_only": statistics.median(decoding / mine for mine, _, decoding, *_ in times),
        "ratio_lowest": ratios[0],
        "ratio_highest": ratios[-1],
    }
    if ffmpeg:
        numbers["ratio_to_ffmpeg"] = statistics.median(process / mine for mine, _, _, process in times)
    return numbers


def main() -> None:
    """Measure, print a table, write JSON with flat keys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, action="append", help="a video to use in place of the synthetic ones")
    parser.add_argument("--rate", type=float, action="append", help="pictures a second; by default 25, 5 and 1")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ffmpeg", help="program to compare with: one process for the clip")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine()
    columns = ("video", "pictures/s", "times real time", "plain route", "ratio", "spread", "of decoding alone")
    table = Table(*columns, title="Ingest on one core")
    results: dict[str, float] = {}
    rates = arguments.rate or RATES
    with tempfile.TemporaryDirectory() as folder:
        videos = {path.stem: path for path in arguments.video or ()} or {
            name: make_video(Path(folder) / f"{name}.mp4", *size, BIT_RATES[name]) for name, size in SIZES.items()
        }
        for name, path in videos.items():
            for rate in rates:
                found = measure(path, rate, arguments.repeats, arguments.ffmpeg)
                results |= {f"ingest.{name}.{rate:g}.{key}": value for key, value in found.items()}
                cells = [f"{found[key]:.1f}" for key in ("times_real_time", "plain_times_real_time", "ratio")]
                spread = f"{found['ratio_lowest']:.1f} - {found['ratio_highest']:.1f}"
                table.add_row(name, f"{rate:g}", *cells, spread, f"{found['of_decode_only']:.0%}")
    Console().print(table)
    for key, value in results.items():
        if key.endswith(f".{TARGET_RATE:g}.of_decode_only"):
            print_ratio(f"{key.split('.')[1]} at {TARGET_RATE:g} pictures/s and decoding alone", value, TARGET, machine)
        if key.endswith(".ratio_to_ffmpeg"):
            size, rate = key.split(".")[1:3]
            print_ratio(f"{size} at {rate} pictures/s and one ffmpeg process", value, 1.0, machine)
    save(results | machine, arguments.out)


if __name__ == "__main__":
    main()
