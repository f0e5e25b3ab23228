"""One pretraining step of the paper's base ViLBERT: comodal's way against the plain fp32 step of the same batch.

comodal's way is the trainer's: no padding computed, heads and last layers at hidden places alone, fused AdamW,
`mallopt` and autocast in the precision asked for. The plain way (kept in tests/) pads captions to 36 words, computes
every head at every place, attention, GELU and normalisation step by step, as the original does, and updates one
parameter after the other. First their losses are compared, in fp32 without dropout. They take their steps in turn,
each in a process of its own; with one thread CPU seconds are measured.

    python benchmarks/vilbert_step.py [--batch 16] [--precision fp32] [--repeats 3] [--threads 1] [--out results.json]
"""

import argparse
import statistics
import sys
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from comodal.data.batch import CaptionBatch
from comodal.hardware import Compute, ResolvedPrecision, resolve_compute
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.objectives.pretraining import ViLBERTPretraining
from comodal.training.optimization import make_adamw
from comodal.training.throughput import count_flops
from comodal.training.training_loop import train_steps
from machine import Step, Worker, describe_machine, print_ratio, save, seconds_in_turn

sys.path.append(str(Path(__file__).parents[1]))
from tests.support.plain_vilbert import plain_losses

SHORTEST, LONGEST, ROWS = 9, 20, 37
CHOSEN = 0.15
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01
TARGETS = {4: 2.0, 16: 2.5, 64: 3.0}  # in fp32, by batch size


def random_batch(size: int, seed: int) -> CaptionBatch:
    """Captions of 9 to 20 word pieces and 37 regions with class probabilities; 15 % of each are hidden."""
    rng, config = np.random.default_rng(seed), ViLBERTConfig()
    lengths = np.sort(rng.integers(SHORTEST, LONGEST + 1, size))
    attended = np.arange(lengths[-1]) < lengths[:, None]
    words = np.where(attended, rng.integers(1000, config.vocabulary, attended.shape), 0)
    hidden_words = np.flatnonzero(attended & (rng.random(attended.shape) < CHOSEN))
    hidden = rng.random((size, ROWS)) < CHOSEN
    hidden[:, 0] = False
    hidden_regions = np.flatnonzero(hidden)
    features = np.maximum(rng.standard_normal((size, ROWS, config.region_feature_dim)), 0).astype(np.float32)
    classes = rng.dirichlet(np.full(config.region_targets, 0.05), len(hidden_regions)).astype(np.float32)
    return CaptionBatch(
        token_ids=torch.from_numpy(words),
        token_types=torch.zeros(words.shape, dtype=torch.int64),
        token_mask=torch.from_numpy(attended),
        region_features=torch.from_numpy(np.where(hidden[..., None], np.float32(0), features)),
        spatials=torch.from_numpy(rng.random((size, ROWS, 5)).astype(np.float32)),
        region_mask=torch.ones(size, ROWS, dtype=torch.bool),
        image_rows=torch.arange(size),
        is_match=torch.arange(size) % 2 == 0,
        masked_token_indices=torch.from_numpy(hidden_words),
        token_targets=torch.from_numpy(rng.integers(1000, config.vocabulary, len(hidden_words))),
        masked_region_indices=torch.from_numpy(hidden_regions),
        feature_targets=torch.from_numpy(features.reshape(-1, features.shape[2])[hidden_regions]),
        class_targets=torch.from_numpy(classes),
        visual_token_targets=torch.full((len(hidden_regions),), -1),
        visual_tokens=torch.zeros((size, ROWS), dtype=torch.int64),
        unpadded_token_indices=torch.from_numpy(np.flatnonzero(attended)),
        unpadded_region_indices=torch.arange(size * ROWS),
        keys=tuple(map(str, range(size))),
    )


def trainers_step(size: int, precision: ResolvedPrecision) -> tuple[float, Step]:
    """The loss before anything was learnt (fp32, no dropout), and a step as the trainer takes it."""
    batch, objective = random_batch(size, seed=0), ViLBERTPretraining(new_model())
    with torch.no_grad():
        before = float(objective.eval()(batch)["loss"])
    optimizer = make_adamw(objective, LEARNING_RATE, WEIGHT_DECAY)
    compute = Compute(torch.device("cpu"), precision)
    steps = train_steps(objective, repeat(batch), optimizer, lambda _step: LEARNING_RATE, range(sys.maxsize), compute)
    return before, lambda: next(steps)


def plain_step(size: int) -> tuple[float, Step]:
    """The same, plainly."""
    batch, model = random_batch(size, seed=0), new_model()
    with torch.no_grad():
        before = float(plain_losses(model.eval(), batch)["loss"])
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False)

    def step() -> None:
        plain_losses(model, batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    return before, step


def new_model() -> ViLBERT:
    torch.manual_seed(0)
    return ViLBERT(ViLBERTConfig())


def report(seconds: dict[str, list[float]], batch: int) -> dict[str, float]:
    """Prints samples a second and the ratio to the plain way."""
    table = Table("way", "seconds", "from - to", "samples/s", "ratio", title=f"pretraining step, batch {batch}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base, numbers = medians["plain fp32"], dict[str, float]()
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} - {max(seconds[name]):.2f}"
        table.add_row(name, f"{median:.2f}", spread, f"{batch / median:.2f}", f"{base / median:.2f}")
        numbers |= {f"{name}.samples_per_second": batch / median, f"{name}.ratio": base / median}
    Console().print(table)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    precision = resolve_compute(precision=options.precision).precision
    machine = describe_machine()
    numbers = {"batch": float(options.batch), "threads": float(options.threads), **machine}
    workers = {
        "plain fp32": Worker(plain_step, (options.batch,), options.threads, mallopt=False),
        f"comodal {precision}": Worker(trainers_step, (options.batch, precision), options.threads, mallopt=True),
    }
    losses = [worker.before for worker in workers.values()]
    numbers["loss_difference"] = max(losses) - min(losses)
    print(f"the same loss in fp32 to {numbers['loss_difference']:.1e} of {losses[0]:.4f}")
    numbers |= report(seconds_in_turn(workers, options.repeats), options.batch)
    operations = count_flops(ViLBERTPretraining(new_model()), random_batch(options.batch, seed=0)) / 1e12
    seconds = options.batch / numbers["plain fp32.samples_per_second"]
    limit = seconds * machine["machine.matrix product.tera_operations_per_second"] / operations
    work = f"ViLBERT base training, batch {options.batch}, comodal {precision} and plain fp32"
    target = TARGETS.get(options.batch, min(TARGETS.values()))
    print_ratio(work, numbers[f"comodal {precision}.ratio"], target, machine, limit)
    save(numbers, options.out)
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
