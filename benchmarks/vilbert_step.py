"""One pretraining step of the paper's base ViLBERT: comodal's way against the plain fp32 step of the same batch.

comodal's way is batches cropped to their longest caption, heads at hidden places alone, bf16 autocast, fused AdamW and
`mallopt`. The plain way (kept in tests/) pads captions to 36 words, computes every head at every place and attention
step by step. First their losses are compared, in fp32 without dropout. Each way runs in a process of its own, because
`mallopt` holds for a whole process; they take their steps in turn.

    python benchmarks/vilbert_step.py [--batch 16] [--repeats 3] [--threads 2] [--out results.json]
"""

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from comodal.data.batch import CaptionBatch
from comodal.models.vilbert import Config, ViLBERT
from comodal.objectives.pretraining import Pretraining
from comodal.training.allocator import keep_freed_memory
from comodal.training.optim import adamw
from machine import save, seconds_in_turn

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from plain_vilbert import plain_losses

SHORTEST, LONGEST, ROWS = 9, 20, 37
CHOSEN = 0.15
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 0.01


def random_batch(size: int, seed: int) -> CaptionBatch:
    """Captions of 9 to 20 word pieces and 37 regions with class probabilities; 15 % of each are hidden."""
    rng, config = np.random.default_rng(seed), Config()
    lengths = np.sort(rng.integers(SHORTEST, LONGEST + 1, size))
    attended = np.arange(lengths[-1]) < lengths[:, None]
    words = np.where(attended, rng.integers(1000, config.vocabulary, attended.shape), 0)
    hidden_words = np.flatnonzero(attended & (rng.random(attended.shape) < CHOSEN))
    hidden = rng.random((size, ROWS)) < CHOSEN
    hidden[:, 0] = False
    hidden_regions = np.flatnonzero(hidden)
    features = np.maximum(rng.standard_normal((size, ROWS, config.region_features)), 0).astype(np.float32)
    classes = rng.dirichlet(np.full(config.region_targets, 0.05), len(hidden_regions)).astype(np.float32)
    return CaptionBatch(
        words=torch.from_numpy(words),
        segments=torch.zeros(words.shape, dtype=torch.int64),
        words_attended=torch.from_numpy(attended),
        regions=torch.from_numpy(np.where(hidden[..., None], np.float32(0), features)),
        locations=torch.from_numpy(rng.random((size, ROWS, 5)).astype(np.float32)),
        regions_attended=torch.ones(size, ROWS, dtype=torch.bool),
        images=torch.arange(size),
        mismatched=torch.arange(size) % 2 == 1,
        masked_words=torch.from_numpy(hidden_words),
        word_targets=torch.from_numpy(rng.integers(1000, config.vocabulary, len(hidden_words))),
        masked_regions=torch.from_numpy(hidden_regions),
        region_features=torch.from_numpy(features.reshape(-1, features.shape[2])[hidden_regions]),
        region_classes=torch.from_numpy(classes),
        region_tokens=torch.full((len(hidden_regions),), -1),
        tokens=torch.zeros((size, ROWS), dtype=torch.int64),
        keys=tuple(map(str, range(size))),
    )


def training_step(batch: CaptionBatch, fast: bool) -> tuple[float, Callable[[], None]]:
    """The loss before anything was learnt (fp32, no dropout), and a step as the trainer takes it or plainly."""
    torch.manual_seed(0)
    model = ViLBERT(Config())
    objective = Pretraining(model)
    losses = (lambda: objective(batch)) if fast else (lambda: plain_losses(model, batch))
    optimizer = (
        adamw(objective, LEARNING_RATE, WEIGHT_DECAY)
        if fast
        else torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, foreach=False)
    )

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = losses()["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.eval()
    with torch.no_grad():
        before = float(losses()["loss"])
    model.train()
    return before, step


def serve(connection: Connection, size: int, fast: bool, mallopt: bool, threads: int) -> None:
    """Says the first loss, then takes a step whenever it is asked."""
    torch.set_num_threads(threads)
    if mallopt and not keep_freed_memory():
        print("this C library has no mallopt: it is off everywhere")
    loss, step = training_step(random_batch(size, seed=0), fast)
    connection.send(loss)
    while connection.recv():
        step()
        connection.send(True)


def in_a_process(size: int, fast: bool, mallopt: bool, threads: int) -> tuple[Connection, float, Callable[[], None]]:
    """A process that takes steps, its first loss, and the function that asks for a step and waits."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, size, fast, mallopt, threads), daemon=True).start()

    def step() -> None:
        here.send(True)
        here.recv()

    return here, here.recv(), step


def report(seconds: dict[str, list[float]], batch: int) -> dict[str, float]:
    """Prints samples a second and the ratio to the plain way."""
    table = Table("way", "seconds", "from - to", "samples/s", "ratio", title=f"pretraining step, batch {batch}")
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    base, numbers = medians["plain fp32"], {}
    for name, median in medians.items():
        spread = f"{min(seconds[name]):.2f} - {max(seconds[name]):.2f}"
        table.add_row(name, f"{median:.2f}", spread, f"{batch / median:.2f}", f"{base / median:.2f}")
        numbers |= {f"{name}.samples_per_second": batch / median, f"{name}.ratio": base / median}
    Console().print(table)
    return numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    ways = {"plain fp32": (False, False), "comodal (mallopt on)": (True, True)}
    workers = {name: in_a_process(options.batch, *way, options.threads) for name, way in ways.items()}
    losses = [loss for _, loss, _ in workers.values()]
    numbers = {"batch": float(options.batch), "threads": float(options.threads)}
    numbers["loss_difference"] = max(losses) - min(losses)
    print(f"the same loss in fp32 to {numbers['loss_difference']:.1e} of {losses[0]:.4f}")
    numbers |= report(
        seconds_in_turn({name: step for name, (*_, step) in workers.items()}, options.repeats), options.batch
    )
    save(numbers, options.out)
    for connection, *_ in workers.values():
        connection.send(False)


if __name__ == "__main__":
    main()
