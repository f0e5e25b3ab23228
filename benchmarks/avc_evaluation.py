"""Pairs a second of `comodal evaluate avc` against those of training the same network, timed in turn in one run.

The evaluation embeds each example once, with the trained and with an untrained network, calibrates the untrained one,
scores two pairs an example, ranks, and writes nothing. A training step reads its pairs, computes gradients, and
updates. Both read the shards in the process.

    python benchmarks/avc_evaluation.py [--width 16] [--image-size 112] [--examples-per-clip 1 2 6 13] [--threads 1]
"""

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from comodal.hardware import Compute
from comodal.models.checkpoint import save_model
from comodal.registry import RECIPES, import_object
from comodal.tasks.correspondence.avc_evaluation import evaluate_avc
from comodal.training.training_loop import train_steps
from machine import describe_machine, print_ratio, save, seconds_in_turn
from pairs import CLIPS, make_shards

BATCH = 16
PAIRS_PER_EXAMPLE = 2
TARGET = 1.0


def make_training_step(data: Path, width: int, image_size: int, model: Path) -> Callable[[], object]:
    """A step as the trainer takes it; the network is saved for the evaluation."""
    run = import_object(RECIPES["l3net"].target)(
        data=data, variant="small", width=width, image_size=image_size, batch_size=BATCH, steps=10_000,
        validation_pairs=BATCH, workers=0,
    )  # fmt: skip
    save_model(run.objective.get_submodule("model"), model, {})
    compute = Compute(torch.device("cpu"), "fp32")
    steps = train_steps(
        run.objective, run.batches.iterate_batches(), run.optimizer, run.learning_rate, range(10_000), compute
    )
    return lambda: next(steps)


def evaluate(model: Path, data: Path, examples_per_clip: int) -> None:
    """The evaluation, without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        evaluate_avc(model, data, examples_per_clip=examples_per_clip, workers=0, device="cpu", precision="fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--examples-per-clip", type=int, nargs="+", default=[1, 2, 6, 13])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for split in ("train", "validation", "test"):
            (folder / "data" / split).mkdir(parents=True)
            make_shards(folder / "data" / split)
        step = make_training_step(folder / "data", options.width, options.image_size, folder / "model")
        works = {"training": step} | {
            str(count * CLIPS * PAIRS_PER_EXAMPLE): partial(evaluate, folder / "model", folder / "data", count)
            for count in options.examples_per_clip
        }
        seconds = seconds_in_turn(works, options.repeats)
    training = BATCH / statistics.median(seconds.pop("training"))
    print(f"training: {training:.1f} pairs/s")
    numbers = {"training.pairs_per_second": training}
    ratios = {}
    for pairs, values in seconds.items():
        rates = sorted(int(pairs) / value for value in values)
        ratios[int(pairs)] = statistics.median(rates) / training
        print(f"evaluation of {pairs} pairs: {rates[len(rates) // 2]:.1f} pairs/s ({rates[0]:.1f} - {rates[-1]:.1f})")
        numbers[f"evaluation.{pairs}.ratio"] = ratios[int(pairs)]
    for pairs, ratio in ratios.items():
        print_ratio(f"evaluate avc on {pairs} pairs and training", ratio, TARGET, machine)
    save(numbers | machine, options.out)


if __name__ == "__main__":
    main()
