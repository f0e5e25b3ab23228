"""Images a second out of a region store, on one core: 36 regions of 2,048 features each, kept in fp16.

Prints the rate of `Captions.batch` (captions of up to 12 words, words and regions hidden, row 0 made, locations), of
the store alone (features into an fp32 batch), and of the plain route, all timed in turn in one run. The plain route,
kept in tests/, is how the original reads: pickles in fp32 out of an LMDB, images padded one by one and stacked; it
reads no captions and hides nothing. The files lie in the system's cache, so this is processor time, not the disk.

    python benchmarks/regions.py [--images 2000] [--batch-size 256] [--repeats 9] [--out results.json]
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from comodal.data.captions.caption_dataset import CaptionDataset
from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.media.tokenizer import WordPieceTokenizer
from machine import describe_machine, save

sys.path.append(str(Path(__file__).parents[1]))
from tests.support.plain_regions import PlainReader, write_plain

REGIONS, DIM, WIDTH, HEIGHT = 36, 2048, 640, 480
SHORTEST, LONGEST = 6, 12  # words of a caption
KINDS = 500  # of words


def make_store(folder: Path, images: int) -> RegionStore:
    """Features like those behind a ReLU: a third of them 0."""
    rng = np.random.default_rng(0)
    with RegionWriter(folder, DIM, about={"made_for": "benchmarks/regions.py"}) as writer:
        for number in range(images):
            features = np.maximum(rng.standard_normal((REGIONS, DIM), dtype=np.float32) + 0.4, 0)
            corners = np.sort(rng.random((REGIONS, 2, 2)) * [WIDTH, HEIGHT], axis=1).reshape(REGIONS, 4)
            writer.add(f"{number:012d}", features, corners.astype(np.float32), WIDTH, HEIGHT)
    return RegionStore(folder)


def make_captions(images: int) -> list[tuple[Caption, int]]:
    """A caption for each image."""
    rng = np.random.default_rng(1)
    captions = []
    for number in range(images):
        words = rng.integers(0, KINDS, rng.integers(SHORTEST, LONGEST + 1))
        text = " ".join(f"word{word}" for word in words.tolist())
        captions.append((Caption((f"{number:012d}",), text, None, str(number)), number))
    return captions


def measure(works: dict[str, Callable[[int], object]], images: int, repeats: int) -> dict[str, list[float]]:
    """Images a second of processor time, all works in turn; the first time is to warm up."""
    rates: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            began = time.process_time()
            work(repeat)
            if repeat:
                rates[name].append(images / (time.process_time() - began))
    return rates


def compare(folder: Path, images: int, batch_size: int, repeats: int) -> dict[str, list[float]]:
    """The rates of whole epochs, in batches."""
    store = make_store(folder / "store", images)
    write_plain(store, folder / "plain.lmdb")
    samples = make_captions(images)
    words = WordPieceTokenizer.from_texts(caption.caption for caption, _ in samples)
    captions = CaptionDataset(samples, store, words, seed=0, batch_size=batch_size)
    reader = PlainReader(folder / "plain.lmdb", REGIONS)
    starts = range(0, images - batch_size + 1, batch_size)

    def order(epoch: int) -> np.ndarray:
        return np.random.default_rng(epoch).permutation(images)

    def with_captions(epoch: int) -> None:
        for start in starts:
            captions.batch([(epoch, start + place) for place in range(batch_size)])

    def features_alone(epoch: int) -> None:
        for start in starts:
            out = torch.empty(batch_size, REGIONS, DIM)
            store.fill_features(order(epoch)[start : start + batch_size].tolist(), out)

    def plain(epoch: int) -> None:
        for start in starts:
            reader.batch([store.ids[row] for row in order(epoch)[start : start + batch_size].tolist()])

    works: dict[str, Callable[[int], object]] = {
        "comodal": with_captions,
        "comodal, features alone": features_alone,
        "plain": plain,
    }
    rates = measure(works, len(starts) * batch_size, repeats)
    reader.close()
    return rates


def main() -> None:
    """Measure, print a table, write JSON with flat keys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as folder:
        rates = compare(Path(folder), options.images, options.batch_size, options.repeats)
    table = Table("what", "images/s", "from - to", title=f"Images of {REGIONS} x {DIM}, one core")
    results = {}
    for name, values in rates.items():
        results[f"regions.{name}.per_second"] = statistics.median(values)
        table.add_row(name, f"{statistics.median(values):,.0f}", f"{min(values):,.0f} - {max(values):,.0f}")
    ratios = sorted(ours / theirs for ours, theirs in zip(rates["comodal"], rates["plain"], strict=True))
    results |= {"regions.ratio": statistics.median(ratios), "regions.ratio_lowest": ratios[0]}
    results["regions.ratio_highest"] = ratios[-1]
    Console().print(table)
    print(f"{results['regions.ratio']:.2f} times the plain route ({ratios[0]:.2f} - {ratios[-1]:.2f})")
    save(results | machine, options.out)


if __name__ == "__main__":
    main()
