"""A folder of pictures searched by text: seconds of the index, milliseconds of the first stage, seconds of a search.

By default 1,000 pictures of the synthetic, regions of an L3-Net of chance in their boxes, and a ViLBERT of chance
(small, or the paper's base model), its first stage fitted on captions of 600 other pictures; with --model a run that
was trained on the synthetic, as `comodal demo` leaves one. Two stages and scoring every picture are timed in turn, on
captions of the searched pictures. The command's own seconds (a fresh process and an index that is there) stand beside.

    python benchmarks/search.py [--pictures 1000] [--queries 5] [--rerank 50] [--size small] [--model RUN] [--threads 2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from comodal.data.regions.region_store import RegionStore
from comodal.inference.image_search.search import Searcher
from comodal.inference.image_search.search_command import open_index
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.l3net import make_small_l3net_config as small_l3net
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import make_base_config, make_small_vilbert_config
from comodal.regions.extract import extract_regions
from comodal.synthetic.scenes.caption_scenes import write_scene_image, write_scene_lists
from machine import describe_machine, save

SIDE = 128
TOP = 10  # pictures that a search returns
KNOWN, SEARCHED = 1, 2  # seeds of two worlds
SIZES = {"small": make_small_vilbert_config, "base": make_base_config}


def write_pictures(folder: Path, count: int, seed: int) -> Path:
    """Pictures with boxes and captions."""
    for index in range(count):
        write_scene_image(folder, seed, index, SIDE)
    write_scene_lists(folder, seed, count, SIDE)
    return folder


def captions_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "captions.jsonl").read_text().splitlines()]


def run_of_chance(folder: Path, known: int, size: str) -> Path:
    """Networks of chance as training leaves them, and captions of pictures that they know."""
    scenes, run = write_pictures(folder / "known", known, KNOWN), folder / "run"
    torch.manual_seed(0)
    save_model(L3Net(small_l3net(8, SIDE // 2)), folder / "network", {})
    extract_regions(scenes / "images", folder / "regions", str(folder / "network"), scenes / "boxes.jsonl", cells=2)
    store, words = (
        RegionStore(folder / "regions"),
        WordPieceTokenizer.from_texts(c for e in captions_of(scenes) for c in e["captions"]),
    )
    config = replace(SIZES[size](), vocabulary=words.size, region_feature_dim=store.dim)
    parameters = {"data": str(store.folder), "captions": str(scenes / "captions.jsonl")}
    save_model(ViLBERT(config), run / "model", {"recipe": "vilbert", "parameters": parameters})
    words.save(run / "model")
    (run / "model" / "regions.json").write_bytes(store.encode_provenance())
    return run


def timed_in_turn(searcher: Searcher, queries: list[str]) -> dict[str, list[float]]:
    """Each query in two stages and by the model alone."""
    ways = {"two stages": searcher, "every picture scored": replace(searcher, stage=None)}
    top = min(TOP, searcher.rerank)
    searcher.search(queries[0], top)
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "first stage"]}
    common = []
    for query in queries:
        found = {name: way.search(query, top) for name, way in ways.items()}
        for name in ways:
            seconds[name].append(found[name].seconds)
        seconds["first stage"].append((found["two stages"].first_stage_milliseconds or 0.0) / 1000)
        first, second = ({hit.path for hit in each.best} for each in found.values())
        common.append(len(first & second) / len(second))
    print(f"of the {top} best of all pictures, two stages have {np.mean(common):.0%}")
    return seconds


def report(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Prints medians and spreads, and returns the medians."""
    table = Table("what", "seconds", "from - to")
    for name, found in seconds.items():
        table.add_row(name, f"{statistics.median(found):.4f}", f"{min(found):.4f} - {max(found):.4f}")
    Console().print(table)
    return {f"{name}.seconds": statistics.median(found) for name, found in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--known", type=int, default=600, help="pictures whose captions fit the first stage")
    parser.add_argument("--queries", type=int, default=5)
    parser.add_argument("--rerank", type=int, default=50)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--model", type=Path, help="a run that learnt from the synthetic's boxes")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = options.model or run_of_chance(folder, options.known, options.size)
        scenes = write_pictures(folder / "searched", options.pictures, SEARCHED)
        pictures, boxes = scenes / "images", str(scenes / "boxes.jsonl")
        numbers, seconds = {"threads": float(options.threads), "pictures": float(options.pictures)}, {}
        for what in ("index and first stage made", "index opened"):
            started = time.perf_counter()
            searcher = open_index(
                pictures, run, rerank=options.rerank, boxes=boxes, precision=options.precision, workers=options.threads
            )
            seconds[what] = [time.perf_counter() - started]
        queries = [entry["captions"][0] for entry in captions_of(scenes)[: options.queries]]
        seconds |= timed_in_turn(searcher, queries)
        command = [sys.executable, "-m", "comodal", "search", str(pictures), queries[0], "--model", str(run)]
        command += ["--rerank", str(options.rerank), "--top-k", str(min(TOP, options.rerank))]
        command += ["--precision", options.precision]
        started = time.perf_counter()
        subprocess.run(command, check=True)
        seconds["the command, index there"] = [time.perf_counter() - started]
        numbers |= report(seconds)
        numbers["ratio"] = numbers["every picture scored.seconds"] / numbers["two stages.seconds"]
        numbers["recall"] = searcher.search(queries[0], min(TOP, options.rerank)).recall or 0.0
        print(f"two stages are {numbers['ratio']:.1f} times as fast; recall of the first {numbers['recall']:.1%}")
    save(numbers | machine, options.out)


if __name__ == "__main__":
    main()
