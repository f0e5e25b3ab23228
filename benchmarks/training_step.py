"""One training step of the paper's full network: comodal's way against the plain fp32 step of the same batch.

comodal's way is autocast in the precision that `auto` takes, the layout of `training_layout`, fused Adam, on a CPU
`mallopt`, and on a GPU `torch.compile`. Each way runs in a process of its own, because `mallopt` holds for a whole
process; they take their steps in turn. On a CPU the plain step is also shown with `mallopt`, and with --keras-python
PATH, a Python in which Keras 3 is installed (`pip install tensorflow-cpu scipy`), the same network in Keras.

    python benchmarks/training_step.py [--device cuda] [--precision auto] [--batch 16] [--width 64] [--repeats 3]
        [--threads 2] [--keras-python PATH] [--out results.json]
"""

import argparse
import subprocess
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from comodal.hardware import MEMORY_FORMATS, Compute, Precision, choose_training_layout, find_device, resolve_compute
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG, L3Net
from comodal.training.optimization import make_adam
from comodal.training.throughput import estimate_peak_flops
from machine import (
    Step,
    Worker,
    describe_machine,
    matrix_product,
    print_ratio,
    report,
    save,
    seconds_in_turn,
    synchronize,
)

TERA_OPERATIONS = 3 * 2 * 20.47e9 / 1e12  # a pair's forward pass, and twice as much backward
LEARNING_RATE, WEIGHT_DECAY = 1e-4, 2e-5
WIDTH = PAPER_L3NET_CONFIG.width
KERAS_TARGET = 1.6


class KerasWorker:
    """A step of the same network in Keras, in a Python of its own that times it."""

    def __init__(self, python: Path, batch: int, width: int, threads: int) -> None:
        script = Path(__file__).with_name("keras_l3net.py")
        command = [python, script, "--batch", batch, "--width", width, "--threads", threads]
        self.process = subprocess.Popen(
            [str(word) for word in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        print(self.read_line(), end="")

    def read_line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the process with Keras ended: its message is above")
        return line

    def __call__(self) -> float:
        """The seconds of one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        return float(self.read_line())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def training_step(batch: int, width: int, fast: bool, device: str, precision: Precision) -> tuple[float, Step]:
    """The loss before anything was learnt, and a step on random pairs, as the trainer takes it or plainly."""
    torch.manual_seed(0)
    compute = resolve_compute(device, precision) if fast else Compute(find_device(device))
    where = compute.device
    model: nn.Module = L3Net(replace(PAPER_L3NET_CONFIG, width=width)).to(where)
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
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of comodal's way")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--width", type=int, default=WIDTH, help="filters of the first block; the paper's: 64")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--keras-python", type=Path, help="a Python with Keras to compare with")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compute, machine = resolve_compute(options.device, options.precision), describe_machine()
    ways = {"plain fp32": (False, False), "comodal": (True, True)}
    if compute.device.type == "cpu":
        ways["plain fp32 + mallopt"] = (False, True)
    workers = {
        name: Worker(
            training_step,
            (options.batch, options.width, fast, options.device, options.precision),
            options.threads,
            mallopt,
        )
        for name, (fast, mallopt) in ways.items()
    }
    keras = None
    if options.keras_python is not None:
        keras = KerasWorker(options.keras_python, options.batch, options.width, options.threads)
    works: dict[str, Step] = {**workers} | ({} if keras is None else {"Keras": keras})
    pair = TERA_OPERATIONS * (options.width / WIDTH) ** 2  # approximately, for other widths than the paper's
    operations = dict.fromkeys(works, options.batch * pair)
    operations["matrix product"], works["matrix product"] = matrix_product(compute.dtype, compute.device)
    seconds = seconds_in_turn(works, options.repeats)
    numbers = report("training step", seconds, operations, "plain fp32")
    reached = numbers["training step.comodal.tera_operations_per_second"]
    ceiling = numbers["training step.matrix product.tera_operations_per_second"]
    peak = estimate_peak_flops(compute) / 1e12
    numbers |= {"training step.of_ceiling": reached / ceiling, "training step.mfu": reached / peak}
    numbers |= {"training step.pairs_per_second": reached / pair, "threads": float(options.threads)}
    print(
        f"{compute.device}, {compute.precision}, batch {options.batch}, {options.threads} threads: "
        f"{reached / pair:,.1f} pairs/s, {reached / ceiling:.0%} of the matrix product, "
        f"MFU {reached / peak:.1%}"
    )
    if keras is not None:
        ratio = numbers["training step.comodal.ratio"] / numbers["training step.Keras.ratio"]
        limit = ceiling / numbers["training step.Keras.tera_operations_per_second"]
        work = (
            f"L3-Net training step, width {options.width}, batch {options.batch}, comodal {compute.precision} and Keras"
        )
        print_ratio(work, ratio, KERAS_TARGET, machine, limit)
        numbers["training step.ratio_to_keras"] = ratio
        keras.close()
    save(numbers | machine, options.out)
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()
