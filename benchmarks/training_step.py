"""One training step of the paper's full network: comodal's way against the plain fp32 step of the same batch.

comodal's way is autocast in the precision that `auto` takes, the layout of `training_layout`, fused Adam, on a CPU
`mallopt`, and on a GPU `torch.compile`. Each way runs in a process of its own, because `mallopt` holds for a whole
process; they take their steps in turn. On a CPU the plain step is also shown with `mallopt`.

    python benchmarks/training_step.py [--device cuda] [--batch 16] [--repeats 3] [--threads 2] [--out results.json]
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from comodal.hardware import MEMORY_FORMATS, Compute, choose_training_layout, find_device, resolve_compute
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG, L3Net
from comodal.training.optimization import make_adam
from comodal.training.throughput import estimate_peak_flops
from machine import Step, Worker, matrix_product, report, save, seconds_in_turn, synchronize

TERA_OPERATIONS = 3 * 2 * 20.47e9 / 1e12  # a pair's forward pass, and twice as much backward
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 2e-5


def training_step(batch: int, fast: bool, device: str) -> tuple[float, Step]:
    """The loss before anything was learnt, and a step on random pairs, as the trainer takes it or plainly."""
    torch.manual_seed(0)
    compute = resolve_compute(device) if fast else Compute(find_device(device))
    where = compute.device
    model: nn.Module = L3Net(PAPER_L3NET_CONFIG).to(where)
    image, sound = torch.randint(0, 256, (batch, 3, 224, 224), dtype=torch.uint8), 0.1 * torch.randn(batch, 48_000)
    image, sound, together = image.to(where), sound.to(where), (torch.arange(batch) % 2).to(where)
    with torch.no_grad():
        before = float(F.cross_entropy(model.eval()(image, sound).logits, together))
    model.train()
    if fast:
        model = model.to(memory_format=MEMORY_FORMATS[choose_training_layout(compute, model)])
        optimizer = make_adam(model, LEARNING_RATE, WEIGHT_DECAY)
    else:
        optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    if fast and where.type == "cuda":
        model.compile()

    def step() -> None:
        with compute.autocast():
            loss = F.cross_entropy(model(image, sound).logits, together)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(where)

    return before, step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compute = resolve_compute(options.device)
    ways = {"plain fp32": (False, False), "comodal": (True, True)}
    if compute.device.type == "cpu":
        ways["plain fp32 + mallopt"] = (False, True)
    workers = {
        name: Worker(training_step, (options.batch, fast, options.device), options.threads, mallopt)
        for name, (fast, mallopt) in ways.items()
    }
    works: dict[str, Step] = {**workers}
    operations = dict.fromkeys(works, options.batch * TERA_OPERATIONS)
    operations["matrix product"], works["matrix product"] = matrix_product(compute.dtype, compute.device)
    seconds = seconds_in_turn(works, options.repeats)
    numbers = report("training step", seconds, operations, "plain fp32")
    reached = numbers["training step.comodal.tera_operations_per_second"]
    ceiling = numbers["training step.matrix product.tera_operations_per_second"]
    peak = estimate_peak_flops(compute) / 1e12
    numbers |= {"training step.of_ceiling": reached / ceiling, "training step.mfu": reached / peak}
    numbers |= {"training step.pairs_per_second": reached / TERA_OPERATIONS, "threads": float(options.threads)}
    print(
        f"{compute.device}, {compute.precision}, batch {options.batch}, {options.threads} threads: "
        f"{reached / TERA_OPERATIONS:,.1f} pairs/s, {reached / ceiling:.0%} of the matrix product, "
        f"MFU {reached / peak:.1%}"
    )
    save(numbers, options.out)
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
