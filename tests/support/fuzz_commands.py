"""Damages small files at random and gives them to the commands: none may end with a stack trace, a crash or no end.

    python -m tests.support.fuzz_commands FOLDER [FILES [SEED [KINDS]]]

FILES is how many damaged files are tried in all, at least one of each kind; 1300 by default. KINDS are names of
`SHARES`, with commas; all by default. Ends with an error that names the files.
"""

import contextlib
import io
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import h5py
import numpy as np
import soundfile
import torch
import yaml
from PIL import Image

from comodal.cli.program import main as comodal
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from tests.support.fuzz_annotations import SHARES as ANNOTATION_SHARES
from tests.support.fuzz_annotations import list_annotation_commands, write_annotation_seeds
from tests.support.synthetic_media import tone, write_video

SECONDS = 120  # for one command
SHARES = {
    "image": 0.18, "audio": 0.14, "video": 0.06, "json": 0.08, "npy": 0.06, "npz": 0.04, "safetensors": 0.04,
    "yaml": 0.04, "caffemodel": 0.03, "hdf5": 0.03, **{kind: 0.3 * share for kind, share in ANNOTATION_SHARES.items()},
}  # fmt: skip
EXPECTED = {0, 1, 2}  # exit statuses


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A file with one to four faults."""
    text = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place, length = rng.randrange(max(len(text), 1)), rng.choice([1, 2, 4, 8, 64])
        match rng.randrange(6):
            case 0:
                text[place : place + length] = rng.randbytes(length)
            case 1:
                text[place : place + length] = rng.choice([b"\xff", b"\x00", b"\x7f", b"\x80"]) * length
            case 2:
                del text[place:]
            case 3:
                del text[place : place + length]
            case 4:
                text[place:place] = rng.choice(
                    [rng.randbytes(length), b"[" * 50, b"-1", b"1e999", b'"', b"null", b"\xe2\x80\xa8"]
                )
            case 5:
                text[place:place] = text[place : place + 64 * length]
    return bytes(text)


def seeds(folder: Path) -> dict[str, list[tuple[str, bytes]]]:
    """Whole files of each kind, by name and content."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (40, 48, 3), dtype=np.uint8)
    for suffix in ("jpg", "png", "gif", "tif", "webp", "bmp"):
        Image.fromarray(pixels).save(folder / f"a.{suffix}")
    sound = (0.1 * rng.normal(size=24_000)).astype(np.float32)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff"):
        soundfile.write(folder / f"a.{suffix}", sound, 16_000)
    with av.open(str(folder / "a.m4a"), "w") as container:
        voice = container.add_stream("aac", rate=16_000)
        voice.layout = "mono"
        frame = av.AudioFrame.from_ndarray(sound[None, :1024], format="fltp", layout="mono")
        frame.sample_rate = 16_000
        container.mux([*voice.encode(frame), *voice.encode(None)])
    write_video(
        folder / "a.mp4", picture_seconds=[frame / 8 for frame in range(12)], size=(32, 32), sound=tone(1.5, 48_000)
    )
    card = {
        "task": "vqa",
        "title": "t",
        "split": "test",
        "scores": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}},
    }
    (folder / "card.json").write_text(json.dumps(card | {"counts": {"items": 3}, "settings": {}, "files": {}}))
    np.save(folder / "a.npy", rng.normal(size=(3, 8)).astype(np.float32))
    info = {"bbox": np.float32([[0, 0, 5, 5]] * 3), "image_width": 20, "image_height": 30, "num_boxes": 3}
    np.save(folder / "a_info.npy", np.array(info, object), allow_pickle=True)
    np.savez(folder / "a.npz", embedding=rng.normal(size=(4, 512)).astype(np.float32), timestamps=np.arange(4) * 0.1)
    (folder / "a.yaml").write_text(yaml.safe_dump({"variant": "small", "steps": 3, "data": "nowhere", "seed": 1}))
    weights = b"\x0a\x01a\x3a\x14" + b"\x3a\x04\x08\x02\x08\x02" + b"\x2a\x0c" + bytes(12)
    (folder / "a.caffemodel").write_bytes(b"\xa2\x06" + bytes([len(weights)]) + weights)
    with h5py.File(folder / "a.h5", "w") as file:
        file.create_dataset("image_features", data=np.ones((1, 2, 8), np.float32), compression="gzip")
        file["image_bb"] = np.float32([[[0, 0, 5, 5], [1, 1, 9, 9]]])
        file["spatial_features"] = np.float32([[[0, 0, 0.5, 0.5, 0.5, 0.5], [0.1, 0.1, 0.9, 0.9, 0.8, 0.8]]])
        file.attrs["layer_names"] = [b"layer"]
        file.create_group("layer").attrs["weight_names"] = [b"kernel"]
        file["layer/kernel"] = np.ones((3, 3, 1, 2), np.float32)
    torch.manual_seed(0)
    save_model(L3Net(L3NetConfig(width=2, image_size=32)), folder / "model", {})

    def read(*names: str) -> list[tuple[str, bytes]]:
        return [(name, (folder / name).read_bytes()) for name in names]

    return write_annotation_seeds(folder, (folder / "a.png").read_bytes()) | {
        "image": read("a.jpg", "a.png", "a.gif", "a.tif", "a.webp", "a.bmp"),
        "audio": read("a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.m4a"),
        "video": read("a.mp4"),
        "json": [*read("card.json"), ("config.json", (folder / "model" / "config.json").read_bytes())],
        "npy": read("a.npy", "a_info.npy"),
        "npz": read("a.npz"),
        "safetensors": [("model.safetensors", (folder / "model" / "model.safetensors").read_bytes())],
        "yaml": read("a.yaml"),
        "caffemodel": read("a.caffemodel"),
        "hdf5": read("a.h5"),
    }


def commands(kind: str, case: Path, file: Path, whole: Path) -> list[list[str]]:
    """What is tried with a damaged file; media are tried by the folder (see `main`)."""
    model, out = str(whole / "model"), str(case / "out")
    match kind:
        case "json" if file.name == "card.json":
            return [["results", str(case)]]
        case "json" | "safetensors":
            for name in {"config.json", "model.safetensors"} - {file.name}:
                (case / name).write_bytes((whole / "model" / name).read_bytes())
            return [["inspect", str(case)], ["share", str(case), out]]
        case "npy":
            for name in {"a.npy", "a_info.npy"} - {file.name}:
                (case / name).write_bytes((whole / name).read_bytes())
            return [["prepare", "regions", str(case), out]]
        case "npz":
            return [["inspect", str(file)], ["identify", str(file)]]
        case "yaml":
            return [["train", "l3net", "--config", str(file), "--out", out]]
        case "caffemodel":
            return [["convert", "detector", str(file), out]]
        case "hdf5":
            (case / "a_imgid2idx.json").write_text('{"1": 0}')
            return [["prepare", "regions", str(file), out], ["convert", "openl3", str(file), out + "2"]]
        case "image":
            return [["embed", "image", str(case), "--model", model, "--out", out, "--workers", "1"]]
        case "audio":
            return [["embed", "audio", str(case), "--model", model, "--out", out, "--workers", "1"]]
    if kind != "video":
        return list_annotation_commands(kind, case, file, whole)
    return [
        ["prepare", "videos", str(case), out, "--workers", "1", "--backend", "sequential"],
        ["embed", "video", str(case), "--model", model, "--out", out + "2", "--workers", "1"],
    ]


def attempt(words: list[str]) -> str:
    """Runs a command in a process of its own; what is wrong with how it ended, or nothing."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        signal.alarm(SECONDS)
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said:
                status = comodal(words)
            fault = "" if status in EXPECTED and "Traceback" not in said.getvalue() else f"{status}: {said.getvalue()}"
        except SystemExit as error:
            fault = "" if error.code in EXPECTED else f"exit {error.code}"
        except BaseException:  # noqa: BLE001 - a stack trace is what is looked for
            fault = traceback.format_exc()
        os.write(writing, fault.encode(errors="replace")[-3000:])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        fault = pipe.read().decode(errors="replace")
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return f"signal {-status}" if status else fault


def main(folder: Path, files: int = 1300, seed: int = 0, kinds: Sequence[str] = tuple(SHARES)) -> int:
    rng, whole = random.Random(seed), folder / "whole"
    examples, tried, faults = seeds(whole), 0, []
    by_folder = {"image", "audio", "video"}  # many files with each command, as their errors cost only the file
    run: Callable[[list[str]], str] = attempt
    for kind in kinds:
        count = max(1, round(SHARES[kind] * files))
        for start in range(0, count, 20 if kind in by_folder else 1):
            case = folder / f"{kind}{start}"
            case.mkdir()
            for number in range(start, min(start + 20, count) if kind in by_folder else start + 1):
                name, data = rng.choice(examples[kind])
                file = case / (f"{number}{Path(name).suffix}" if kind in by_folder else name)
                file.write_bytes(damaged(data, rng))
                tried += 1
            for words in commands(kind, case, file, whole):
                if fault := run(words):
                    faults.append(f"{' '.join(words)}\n{fault}")
                    print(faults[-1], file=sys.stderr, flush=True)
    print(f"{tried:,} files, {len(faults)} faults")
    return min(len(faults), 1)


if __name__ == "__main__":
    chosen = sys.argv[4].split(",") if len(sys.argv) > 4 else tuple(SHARES)
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:4]), kinds=chosen))
