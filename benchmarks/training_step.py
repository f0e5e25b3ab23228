"""One training step of the paper's full network: comodal's way against the plain fp32 step of the same batch.

comodal's way is bf16 autocast, channels_last, fused Adam and `mallopt`. Each way runs in a process of its own, because
`mallopt` holds for a whole process; they take their steps in turn. The plain step is also shown with `mallopt`.

    python benchmarks/training_step.py [--batch 16] [--repeats 3] [--threads 2] [--out results.json]
"""

import argparse
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from torch.nn import functional as F

from comodal.models.l3net import PAPER, L3Net
from comodal.training.allocator import keep_freed_memory
from comodal.training.optim import adam
from machine import matrix_product, report, save, seconds_in_turn

TERA_OPERATIONS = 3 * 2 * 20.47e9 / 1e12  # a pair's forward pass, and twice as much backward
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 2e-5


def training_step(batch: int, fast: bool) -> Callable[[], None]:
    """A step on random pairs, as the trainer takes it or plainly."""
    model = L3Net(PAPER)
    image, sound = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8), 0.1 * torch.randn(batch, 48_000)
    together = torch.arange(batch) % 2
    if fast:
        model = model.to(memory_format=torch.channels_last)
        optimizer = adam(model, LEARNING_RATE, WEIGHT_DECAY)
    else:
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=fast):
            loss = F.cross_entropy(model(image, sound).logits, together)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def serve(connection: Connection, batch: int, fast: bool, mallopt: bool, threads: int) -> None:
    """Takes a step whenever it is asked."""
    torch.set_num_threads(threads)
    if mallopt and not keep_freed_memory():
        print("this C library has no mallopt: it is off everywhere")
    step = training_step(batch, fast)
    while connection.recv():
        step()
        connection.send(True)


def in_a_process(batch: int, fast: bool, mallopt: bool, threads: int) -> tuple[Connection, Callable[[], None]]:
    """A process that takes steps, and the function that asks for one and waits."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    context.Process(target=serve, args=(there, batch, fast, mallopt, threads), daemon=True).start()

    def step() -> None:
        here.send(True)
        here.recv()

    return here, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ways = {"plain fp32": (False, False), "plain fp32 + mallopt": (False, True), "comodal (mallopt on)": (True, True)}
    workers = {name: in_a_process(options.batch, *way, options.threads) for name, way in ways.items()}
    works = {name: step for name, (_, step) in workers.items()}
    operations = dict.fromkeys(works, options.batch * TERA_OPERATIONS)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        operations[f"matrix product {name}"], works[f"matrix product {name}"] = matrix_product(dtype)
    seconds = seconds_in_turn(works, options.repeats)
    numbers = report("training step", seconds, operations, "plain fp32")
    reached = numbers["training step.comodal (mallopt on).tera_operations_per_second"]
    ceiling = numbers["training step.matrix product bf16.tera_operations_per_second"]
    numbers |= {"training step.of_ceiling": reached / ceiling, "threads": float(options.threads)}
    print(f"batch {options.batch}, {options.threads} threads: {reached / ceiling:.0%} of the bf16 matrix product")
    save(numbers, options.out)
    for connection, _ in workers.values():
        connection.send(False)


if __name__ == "__main__":
    main()
