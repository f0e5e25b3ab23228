"""Pairs a second out of shards, on one core: a frame (256 px JPEG, crop of 224) and a second of 48 kHz FLAC, augmented.

Prints the rate of `Clips.batch` with and without augmentation, where the time goes, and the plain route, all timed in
turn in one run. The plain route: Pillow for frame and colours, and a clip's whole FLAC decoded for one second of it.

    python benchmarks/pairs.py [--data SHARDS/train] [--repeats 9] [--out results.json]
"""

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageEnhance
from rich.console import Console
from rich.table import Table

from comodal.data.shards.clip_dataset import Augmentation, ClipPairDataset
from comodal.data.shards.pair_sampler import PairSampler
from comodal.data.shards.shard_reader import ShardReader, ShardWriter
from comodal.media.audio import encode_flac
from comodal.media.augmentation import jitter_color, jitter_gain, random_horizontal_flip
from comodal.media.image import encode_jpeg
from machine import describe_machine, save

IMAGE_SIZE, SAMPLE_RATE, SECONDS, FRAMES, CLIPS = 224, 48_000, 10.0, 50, 40
BATCH = 64
KEYS = 100_000  # read to time one


def make_shards(folder: Path) -> ShardReader:
    """Ten seconds a clip: photograph-like frames of 256 x 456 (16:9) of some 50 kB, and music-like sound."""
    rng = np.random.default_rng(0)
    moments = [frame * SECONDS / FRAMES for frame in range(FRAMES)]
    clock = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    with ShardWriter(folder / "000000.tar") as shard:
        for clip in range(CLIPS):
            coarse = Image.fromarray(rng.integers(0, 256, (16, 28, 3)).astype(np.uint8))
            scene = np.asarray(coarse.resize((456, 256), Image.Resampling.BICUBIC)).astype(np.int16)
            frame = encode_jpeg(np.clip(scene + rng.normal(0, 12, scene.shape), 0, 255).astype(np.uint8), quality=85)
            tones = sum(0.05 * np.sin(2 * np.pi * pitch * clock) for pitch in rng.uniform(80, 4000, 6))
            sound = (tones + rng.normal(0, 0.02, len(clock))).astype(np.float32)
            names = [f"{number:04d}.jpg" for number in range(FRAMES)]
            record = {"key": f"clip{clip}", "group": f"clip{clip}", "frame_seconds": moments, "frames": names}
            record |= {"seconds": SECONDS, "sample_rate": SAMPLE_RATE}
            shard.write(f"clip{clip}", {**dict.fromkeys(names, frame), "flac": encode_flac(sound, SAMPLE_RATE)}, record)
    return ShardReader(folder)


def plain_batch(clips: ClipPairDataset, places: list[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """The same pairs as one writes it first."""
    images, sounds = [], []
    for epoch, index in places:
        pair, rng = clips.pairs(epoch, index), np.random.default_rng((1, epoch, index))
        name = clips.shards.read_record(pair.image_clip)["frames"][pair.frame]
        image = Image.open(io.BytesIO(clips.shards.read_member(pair.image_clip, name))).convert("RGB")
        left, top = (int(rng.integers(side - IMAGE_SIZE + 1)) for side in image.size)
        image = image.crop((left, top, left + IMAGE_SIZE, top + IMAGE_SIZE))
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        image = ImageEnhance.Color(image).enhance(rng.uniform(0.5, 1.5))
        image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.9, 1.1))
        images.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
        whole, rate = soundfile.read(io.BytesIO(clips.shards.read_member(pair.audio_clip, "flac")), dtype="float32")
        start = round(pair.start_seconds * rate)
        sounds.append(torch.from_numpy(whole[start : start + SAMPLE_RATE] * np.float32(rng.uniform(0.9, 1.1))))
    return torch.stack(images), torch.stack(sounds)


def stages(clips: ClipPairDataset) -> dict[str, Callable[[list[tuple[int, int]]], object]]:
    """The parts of a batch one by one, on the pairs of the places."""
    rng, amount = np.random.default_rng(0), Augmentation()
    picture, sound = np.zeros((IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8), np.zeros(SAMPLE_RATE, np.float32)

    def augment(_place: tuple[int, int]) -> None:
        jitter_color(random_horizontal_flip(picture, rng), amount.brightness_jitter, amount.saturation_jitter, rng)
        jitter_gain(sound, amount.gain_jitter, rng)

    parts: dict[str, Callable] = {
        "pair": lambda place: clips.pairs(*place),
        "pair, frame": lambda place: clips.read_frame(clips.pairs(*place)),
        "pair, sound": lambda place: clips.read_audio(clips.pairs(*place)),
        "flip, colour, volume": augment,
    }
    return {name: (lambda places, part=part: [part(place) for place in places]) for name, part in parts.items()}


def measure(works: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """Pairs a second of processor time, all works in turn."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        places = [(repeat, index) for index in range(BATCH)]
        for name, work in works.items():
            began = time.process_time()
            work(places)
            if repeat:  # the first is to warm up
                rates[name].append(BATCH / (time.process_time() - began))
    return rates


def main() -> None:
    """Measure, print a table, write JSON with flat keys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a split of shards in place of the synthetic one")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        shards = ShardReader(options.data) if options.data else make_shards(Path(folder))
        pairs = PairSampler(shards, seed=0)
        augmented = ClipPairDataset(shards, pairs, IMAGE_SIZE, SAMPLE_RATE, Augmentation())
        bare = ClipPairDataset(shards, pairs, IMAGE_SIZE, SAMPLE_RATE, None)
        works = {"comodal": augmented.batch, "comodal, not augmented": bare.batch}
        works |= {"plain": lambda places: plain_batch(augmented, places), **stages(augmented)}
        rates = measure(works, options.repeats)
        began = time.process_time()
        for number in range(KEYS):
            shards.get_key(number % len(shards))
        key_microseconds = 1e6 * (time.process_time() - began) / KEYS
    table = Table("what", "pairs/s", "from - to", "ms a pair", title="Pairs out of shards, one core")
    results = {"pairs.key_microseconds": key_microseconds}
    for name, values in rates.items():
        median = statistics.median(values)
        table.add_row(name, f"{median:.0f}", f"{min(values):.0f} - {max(values):.0f}", f"{1000 / median:.2f}")
        results[f"pairs.{name}.per_second"] = median
    ratios = sorted(ours / theirs for ours, theirs in zip(rates["comodal"], rates["plain"], strict=True))
    results |= {"pairs.ratio": statistics.median(ratios), "pairs.ratio_lowest": ratios[0]}
    results["pairs.ratio_highest"] = ratios[-1]
    Console().print(table)
    print(f"the key of a sample: {key_microseconds:.2f} microseconds (target: 2)")
    print(f"{results['pairs.ratio']:.2f} times the plain route ({ratios[0]:.2f} - {ratios[-1]:.2f})")
    save(results | machine, options.out)


if __name__ == "__main__":
    main()
