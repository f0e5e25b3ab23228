"""How much of its rate training keeps beside one other busy process.

Steps of a small L3-Net, with two threads and with as many as comodal chooses at that moment, alone and beside a process
that computes without pause, in turn in one run. Every measurement is a process of its own that starts as the command
line does, since OpenMP reads its settings when torch is loaded.

    python benchmarks/busy_machine.py [--seconds 4] [--repeats 3] [--out results.json]
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

# isort: off
import comodal  # noqa: F401  before torch, for it sets how OpenMP's threads wait
import torch

# isort: on
from comodal.hardware import MEMORY_FORMATS, get_instruction_set, resolve_threads
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.objectives.avc import compute_correspondence_loss
from comodal.training.allocator import keep_freed_memory
from comodal.training.optimization import make_adam
from machine import describe_machine, save

BATCH = 64
TARGET = 0.4  # of the rate alone
THREADS = {"two threads": 2, "automatic": None}
BUSY = "while True: pass"


def pairs_per_second(threads: int | None, seconds: float) -> float:
    """The rate of training in this process."""
    torch.set_num_threads(resolve_threads(threads))
    keep_freed_memory()
    torch.manual_seed(0)
    model = L3Net(make_small_l3net_config(8, 64)).to(memory_format=MEMORY_FORMATS["channels_last"])
    optimizer = make_adam(model, 1e-3, 0.0)
    image, sound = torch.randint(0, 256, (BATCH, 3, 64, 64), dtype=torch.uint8), 0.1 * torch.randn(BATCH, 48_000)
    together = torch.arange(BATCH) % 2 == 0

    def step() -> None:
        compute_correspondence_loss(model(image, sound).logits, together)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    steps, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        step()
        steps += 1
    return BATCH * steps / (time.perf_counter() - began)


def measured(threads: int | None, seconds: float) -> float:
    """The same in a new process, which takes no number of threads from the environment."""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, __file__, "--seconds", str(seconds), "--measure", str(threads or 0)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


@contextmanager
def busy_process() -> Iterator[None]:
    """One more process that computes without pause."""
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def kept_fractions(seconds: float, repeats: int) -> dict[str, float]:
    """Of each choice of threads: the medians of the rates alone and beside a busy process, and their ratio."""
    rates: dict[str, list[float]] = {}
    for _ in range(repeats):
        for name, threads in THREADS.items():
            for where, company in (("alone", nullcontext()), ("busy", busy_process())):
                with company:
                    rates.setdefault(f"{name}.{where}", []).append(measured(threads, seconds))
    found = {name: statistics.median(values) for name, values in rates.items()}
    return found | {f"{name}.kept": found[f"{name}.busy"] / found[f"{name}.alone"] for name in THREADS}


def main() -> None:
    """Measure, print, write JSON with flat keys."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of one measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=int, help="print the rate with so many threads, 0 for automatic, and end")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.measure is not None:
        print(pairs_per_second(options.measure or None, options.seconds))
        return
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    print(f"{get_instruction_set()}, {os.cpu_count()} cores{load}, torch {torch.__version__}")
    machine = describe_machine()
    found = kept_fractions(options.seconds, options.repeats)
    for name in THREADS:
        print(
            f"{name}: {found[f'{name}.alone']:.0f} pairs/s alone, {found[f'{name}.busy']:.0f} beside a busy process: "
            f"{found[f'{name}.kept']:.0%} kept (target {TARGET:.0%})"
        )
    save(machine | {f"busy machine.{name}": value for name, value in found.items()}, options.out)


if __name__ == "__main__":
    main()
