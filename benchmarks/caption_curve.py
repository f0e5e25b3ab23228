"""A learning curve of ViLBERT: alignment and retrieval against the number of training captions.

Scenes of the synthetic world, with three captions each. No image is rendered: a region's features are a fixed random
projection of its object's kind, color and material, with noise, so that the curve is that of the two streams and not
of a vision network. Of ten scenes, eight are for training (nested subsets of them), one for validation and one for
testing; a test scene keeps its first caption. Every size has the same number of steps.

    python benchmarks/caption_curve.py --out curve/ --fractions 0.03125 0.125 0.5 1
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from comodal.data.regions.region_store import RegionWriter
from comodal.recipes.vilbert_pretraining import recipe
from comodal.synthetic.scenes.caption_scenes import write_scene_lists
from comodal.synthetic.scenes.world import MATERIALS, OBJECT_COLORS, SILENT_KINDS, SOUNDING_KINDS
from comodal.synthetic.vocabulary import write_vocabulary
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.text_files import read_log
from comodal.training.run import train

DIM, NOISE, SIDE = 64, 0.5, 128
ATTRIBUTES = {"kind": (*SOUNDING_KINDS, *SILENT_KINDS), "color": tuple(OBJECT_COLORS), "material": tuple(MATERIALS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--scenes", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--fractions", type=float, nargs="+", default=[0.03125, 0.0625, 0.125, 0.25, 0.5, 1.0])
    parser.add_argument("--contrastive-weight", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    write_scene_lists(options.out, 0, options.scenes, SIDE)
    keep_one_test_caption(options.out / "captions.jsonl")
    write_vocabulary(options.out / "vocab.txt")
    write_regions(options.out / "boxes.jsonl", options.out / "regions")
    numbers: dict[str, float] = {}
    for fraction in options.fractions:
        measured = measure(fraction, options)
        print(fraction, measured, flush=True)
        numbers |= {f"{fraction}.{key}": value for key, value in measured.items()}
    (options.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")


def keep_one_test_caption(path: Path) -> None:
    """The queries of the test are independent: one for each image."""
    records = [json.loads(line) for line in path.read_text().splitlines()]
    for record in records:
        if record["split"] == "test":
            record["captions"] = record["captions"][:1]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_regions(boxes: Path, out: Path) -> None:
    """A region for each object: a sum of random vectors of its attributes, and noise."""
    if out.exists():
        return
    rng = np.random.default_rng(0)
    vectors = {value: rng.normal(size=DIM) for values in ATTRIBUTES.values() for value in values}
    with RegionWriter(out, DIM, about={"features": "attributes of the synthetic world's objects"}) as writer:
        for line in boxes.read_text().splitlines():
            record = json.loads(line)
            features = np.stack([sum(vectors[each[name]] for name in ATTRIBUTES) for each in record["objects"]])
            features = (features + NOISE * rng.normal(size=features.shape)).astype(np.float32)
            name = record["image"].removesuffix(".jpg")
            writer.add(name, features, np.array(record["boxes"], np.float32), SIDE, SIDE)


def measure(fraction: float, options: argparse.Namespace) -> dict[str, float]:
    """The accuracy of alignment on validation pairs, and the recall of test images by their caption."""
    run = options.out / f"run_{fraction}_{options.seed}"
    settings = {
        "data": options.out / "regions", "captions": options.out / "captions.jsonl", "data_fraction": fraction,
        "vocabulary": options.out / "vocab.txt", "variant": "small", "dropout": 0.0, "steps": options.steps,
        "batch_size": options.batch, "learning_rate": 5e-4, "workers": 0, "seed": options.seed,
        "contrastive_weight": options.contrastive_weight,
    }  # fmt: skip
    train(recipe, settings, run, resume=True, threads=torch.get_num_threads(), validate_every=options.steps)
    log = [line for line in read_log(run / "metrics.jsonl") if line["split"] == "validation"][-1]
    results = evaluate_retrieval(
        run, options.out / "captions.jsonl", options.out / "regions", zero_shot=True, out=run / "retrieval"
    )
    recall = {key: value for key, value in results.items() if key.startswith("retrieval.text_to_image.")}
    return {"alignment_accuracy": log["alignment_accuracy"]} | recall


if __name__ == "__main__":
    main()
