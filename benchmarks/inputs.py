"""What a region should be for the model: its features, a visual token, or a token in one stream (ViLBERT, section 2.2).

The paper argues against turning regions into visual tokens and treating them like words. Here the same small network
learns from the same pictures with captions three times: two streams that read features, two streams that read tokens,
and one stream over words and tokens. All are asked for tokens of hidden regions, take as many steps, and are measured
by zero-shot retrieval on the held-out pictures.

    comodal demo world/                                     # its synthetic, and a region store of its scenes
    python benchmarks/inputs.py --captions world/synthetic/scenes/captions.jsonl --regions world/regions --out inputs/
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from comodal.recipes.vilbert_pretraining import recipe
from comodal.regions.visual_tokens import prepare_tokens
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.text_files import read_log
from comodal.training.run import train

INPUTS: dict[str, dict[str, Any]] = {
    "features": {"variant": "small", "regions_as": "features"},
    "tokens": {"variant": "small", "regions_as": "tokens"},
    "one_stream": {"variant": "small_single_stream", "regions_as": "tokens"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True)
    parser.add_argument("--regions", type=Path, required=True, help="region store; a copy of it gets the tokens")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--tokens", type=int, default=256)
    options = parser.parse_args()
    store = options.out / "regions"
    if not store.exists():
        shutil.copytree(options.regions, store)
        prepare_tokens(store, tokens=options.tokens)
    numbers: dict[str, float] = {}
    for name, chosen in INPUTS.items():
        started, run = time.perf_counter(), options.out / name
        settings = {"data": store, "captions": options.captions, "region_targets": ["tokens"], "dropout": 0.0,
                    "steps": options.steps, "batch_size": 64, "learning_rate": 1e-3, "workers": 0}  # fmt: skip
        train(recipe, settings | chosen, run, resume=True, threads=torch.get_num_threads())
        numbers[f"{name}.seconds"] = time.perf_counter() - started
        found = evaluate_retrieval(run, options.captions, store)
        numbers |= {f"{name}.{cut}": found[f"retrieval.text_to_image.{cut}"] for cut in ("r1", "r5", "r10")}
        last = [line for line in read_log(run / "metrics.jsonl") if line["split"] == "validation"][-1]
        for task in ("token", "region", "alignment"):
            numbers[f"{name}.{task}_accuracy"] = last[f"{task}_accuracy"]
    (options.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")
    for key, value in numbers.items():
        print(f"{key:<32} {value:.4f}")


if __name__ == "__main__":
    main()
