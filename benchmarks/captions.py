"""Real pictures with short captions: Tux Paint's stamps, regions of a real network, a real BERT.

The stamps (https://tuxpaint.org/stamps) with a captions.json, an array of {"image", "caption"}. Of the captions that
occur once, every fifth is held out until there are 112; their pictures are found by their captions, zero-shot. Regions
are the cells of a grid over EfficientNet-Lite0's map (ImageNet), words begin as MiniLM. With --synthetic DIR the model
first learns from the made-up world's pictures with captions, seen through the same network. The baseline is two linear
layers over the same frozen networks, which learn by contrast to bring a picture and its caption together.

    python benchmarks/captions.py --stamps tux_stamps/ --bert minilm/ --out stamps/ [--synthetic world/]
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.convert.convert_bert import derive_config_from_bert, load_bert_weights
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.recipes.vilbert_pretraining import recipe
from comodal.regions.backbones import LITE0
from comodal.regions.extract import extract_regions
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.training.run import train

HELD_OUT, EVERY = 112, 5
GRID = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="folder of pictures with captions.json")
    parser.add_argument("--bert", type=Path, required=True, help="folder of a Hugging Face BERT")
    parser.add_argument("--synthetic", type=Path, help="a synthetic whose scenes are learnt first")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--detector", default=LITE0, help="of `comodal extract`: a vision network")
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--synthetic-steps", type=int, default=600)
    options = parser.parse_args()
    started = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    split_captions(options.stamps / "captions.json", options.out / "captions.json")
    extract_regions(options.stamps, options.out / "regions", options.detector, grid=GRID)
    first = None
    if options.synthetic:
        scenes, first = options.synthetic / "scenes", options.out / "synthetic_run"
        extract_regions(scenes / "images", options.out / "synthetic_regions", options.detector, grid=GRID)
        learn(
            first, options.out / "synthetic_regions", scenes / "captions.jsonl", options.bert, options.synthetic_steps
        )
    run = options.out / ("run_after_synthetic" if first else "run")
    learn(run, options.out / "regions", options.out / "captions.json", options.bert, options.steps, first)
    numbers = evaluate_retrieval(run, options.out / "captions.json", options.out / "regions", out=run / "retrieval")
    numbers |= contrastive(options.out / "regions", options.out / "captions.json", options.bert)
    print({name: round(value, 3) for name, value in numbers.items() if name.startswith("contrastive")})
    numbers["seconds"] = time.perf_counter() - started
    (options.out / f"{run.name}.json").write_text(json.dumps(numbers, indent=2) + "\n")


def learn(out: Path, regions: Path, captions: Path, bert: Path, steps: int, first: Path | None = None) -> None:
    """A small model over MiniLM: two layers of vision, two co-attention layers."""
    settings: dict[str, Any] = {"data": regions, "captions": captions, "bert": bert, "start_from": first}
    settings |= {"variant": "small", "steps": steps, "batch_size": 64, "learning_rate": 1e-3, "backbone_lr_scale": 0.1}
    settings |= {"negatives": "caption", "region_targets": ["features"], "workers": 1, "validation_pairs": 448}
    status = train(recipe, settings, out, resume=True, threads=torch.get_num_threads(), validate_every=100)
    if status:
        sys.exit(status)


def contrastive(regions: Path, captions: Path, bert: Path, dim: int = 256, steps: int = 300) -> dict[str, float]:
    """Two linear layers over the mean of a picture's cells and of a caption's words, both of frozen networks (InfoNCE,
    temperature 0.07, all training pairs in each step)."""
    store, words = RegionStore(regions), WordPieceTokenizer.read(bert)
    pairs = split_matched_captions(match_captions(read_captions(captions), store.ids).pairs, store.ids, 0.0, 0.0)
    text = ViLBERT(derive_config_from_bert(bert, template=ViLBERTConfig(co_attention_layers=(), co_attention=False)))
    load_bert_weights(text, bert)
    pictures, sentences = {}, {}
    for split in ("train", "test"):
        cells = [
            torch.from_numpy(store.read_regions(row).features.astype(np.float32)).mean(0) for _, row in pairs[split]
        ]
        pictures[split] = F.normalize(torch.stack(cells), dim=1)
        sentences[split] = torch.stack([sentence(text.eval(), words, caption.caption) for caption, _ in pairs[split]])
    torch.manual_seed(0)
    layers = nn.ModuleList([nn.Linear(pictures["train"].shape[1], dim), nn.Linear(sentences["train"].shape[1], dim)])
    optimizer = torch.optim.AdamW(layers.parameters(), lr=3e-3, weight_decay=0.1)
    for _ in range(steps):
        logits = scores(layers, sentences["train"], pictures["train"]) / 0.07
        target = torch.arange(len(logits))
        (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.inference_mode():
        found = scores(layers, sentences["test"], pictures["test"])
    ranks = (found > found.diagonal()[:, None]).sum(1)
    return {f"contrastive.text_to_image.r{cut}": float((ranks < cut).float().mean()) for cut in (1, 5, 10)}


@torch.inference_mode()
def sentence(model: ViLBERT, words: WordPieceTokenizer, caption: str) -> torch.Tensor:
    """The mean of the last layer over the words of a caption, of length one."""
    pieces = torch.tensor([words.encode(caption)])
    tokens = model.encode_text(
        pieces, torch.zeros_like(pieces), torch.ones_like(pieces, dtype=torch.bool)
    ).hidden_states
    return F.normalize(tokens[0].mean(0), dim=0)


def scores(layers: nn.ModuleList, sentences: torch.Tensor, pictures: torch.Tensor) -> torch.Tensor:
    return F.normalize(layers[1](sentences), dim=1) @ F.normalize(layers[0](pictures), dim=1).T


def split_captions(source: Path, target: Path) -> None:
    """The captions with their split. A picture whose caption others share is never held out."""
    entries = json.loads(source.read_text())
    counts = Counter(entry["caption"] for entry in entries)
    once = sorted(caption for caption, times in counts.items() if times == 1)
    held_out = set(once[::EVERY][:HELD_OUT])
    rows = [
        {
            "image": entry["image"],
            "caption": entry["caption"],
            "split": "test" if entry["caption"] in held_out else "train",
        }
        for entry in entries
    ]
    target.write_text(json.dumps(rows, ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
