"""What the benchmarks of models share: timing in turn, the machine and its ceiling, and one table and JSON file."""

import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeAlias

import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional as F

from comodal import hardware
from comodal.environment import read_cpu_name
from comodal.training.allocator import keep_freed_memory

Step: TypeAlias = Callable[[], object]


def clock() -> float:
    """Seconds of the processor with one thread, which other processes do not disturb; with more threads of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds_in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Each work once to warm up, then all of them in turn, so that a busy moment hits all alike.

    A work that returns a number of seconds was timed where it was done, in another process.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = clock()
            timed = work()
            seconds[name].append(timed if isinstance(timed, float) else clock() - start)
    return seconds


class Worker:
    """A step in a process of its own, which times it: what `mallopt` changes, it changes for a whole process.

    Args:
        prepare: Returns what is known before the first step, and the step; it is called in the process.
        arguments: Of `prepare`.
        threads: Of the process.
        mallopt: Whether it keeps freed memory.
    """

    def __init__(
        self, prepare: Callable[..., tuple[float, Step]], arguments: tuple, threads: int, mallopt: bool
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        serving = (there, prepare, arguments, threads, mallopt)
        context.Process(target=serve, args=serving, daemon=True).start()
        self.before: float = self.connection.recv()

    def __call__(self) -> float:
        """The seconds of one step."""
        self.connection.send(True)
        return self.connection.recv()

    def close(self) -> None:
        self.connection.send(False)


def serve(
    connection: Connection, prepare: Callable[..., tuple[float, Step]], arguments: tuple, threads: int, mallopt: bool
) -> None:
    """Takes a step whenever it is asked, and tells its seconds."""
    torch.set_num_threads(threads)
    if mallopt and not keep_freed_memory():
        print("this C library has no mallopt: it is off everywhere")
    before, step = prepare(*arguments)
    connection.send(before)
    while connection.recv():
        start = clock()
        step()
        connection.send(clock() - start)


def matrix_product(
    dtype: torch.dtype,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> tuple[float, Callable[[], object]]:
    """The 10^12 floating point operations of a product (2048 rows on a CPU, 8192 elsewhere), and the product: what the
    machine can do at best."""
    rows = 2048 if device.type == "cpu" else 8192
    left, right = (torch.randn(rows, rows).to(device, dtype) for _ in range(2))

    def product() -> None:
        left @ right
        synchronize(device)

    return 2 * rows**3 / 1e12, product


def int8_product() -> tuple[float, Callable[[], object]]:
    """The operations of an int8 product of 2048 rows, and the product, by oneDNN, which obeys ONEDNN_MAX_CPU_ISA."""
    torch.backends.quantized.engine = "onednn"
    left = torch.quantize_per_tensor(torch.randn(2048, 2048), 0.05, 128, torch.quint8)
    right = torch.quantize_per_tensor(torch.randn(2048, 2048), 0.05, 0, torch.qint8)
    packed = torch.ops.quantized.linear_prepack(right, None)
    return 2 * 2048**3 / 1e12, lambda: torch.ops.quantized.linear(left, packed, 0.5, 128)


def synchronize(device: torch.device) -> None:
    """Waits until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def convolution(dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """The operations of a 3x3 convolution of 256 channels, and the convolution, in the layout that suits it."""
    layout = torch.channels_last
    image = torch.randn(2, 256, 56, 56).to(dtype).contiguous(memory_format=layout)
    weight = torch.randn(256, 256, 3, 3).to(dtype).contiguous(memory_format=layout)
    return 2 * weight.numel() * 2 * 56 * 56 / 1e12, lambda: F.conv2d(image, weight, padding=1)


@torch.inference_mode()
def describe_machine(repeats: int = 5, int8: bool = False) -> dict[str, float]:
    """Prints the processor, its instruction set, the threads and what it reaches at best, and returns the rates."""
    works = {"matrix product": matrix_product(torch.float32), "convolution": convolution(torch.float32)}
    if int8:
        works["int8 product"] = int8_product()
    seconds = seconds_in_turn({name: work for name, (_, work) in works.items()}, repeats)
    rates = {name: operations / statistics.median(seconds[name]) for name, (operations, _) in works.items()}
    kind = "CPU seconds" if torch.get_num_threads() == 1 else "seconds"
    ceiling = ", ".join(f"{name} {1000 * rate:.0f} GFLOP/s" for name, rate in rates.items())
    print(
        f"{read_cpu_name()}, {hardware.get_instruction_set()}, native bf16 {hardware.has_native_bf16('cpu')}, torch "
        f"{torch.__version__}, {torch.get_num_threads()} threads; ceiling: {ceiling} ({kind})"
    )
    return {f"machine.{name}.tera_operations_per_second": rate for name, rate in rates.items()}


def print_ratio(work: str, ratio: float, target: float, rates: Mapping[str, float], limit: float | None = None) -> None:
    """Prints a ratio, its target and what the machine reaches at best in the same run, in one line.

    Args:
        work: What was compared with what.
        ratio: Of throughputs.
        target: The smallest ratio that is wanted.
        rates: From `describe_machine`.
        limit: The ratio if the work ran at the rate of the matrix product (for int8, of the int8 product).
    """
    ceiling = ", ".join(f"{name.split('.')[1]} {1000 * rate:.0f} GFLOP/s" for name, rate in rates.items())
    verdict = "reached" if ratio >= target else "not reached"
    bound = "" if limit is None else f", {limit:.2f} at the rate of the matrix product"
    print(
        f"RATIO {work}: {ratio:.2f}, target {target:g} ({verdict}){bound}; {hardware.get_instruction_set()}, "
        f"{torch.get_num_threads()} threads, ceiling: {ceiling}"
    )


def report(
    title: str, seconds: Mapping[str, list[float]], tera_operations: Mapping[str, float], baseline: str
) -> dict[str, float]:
    """Prints medians, spreads and ratios to the baseline, and returns them with flat keys."""
    table = Table("what", "seconds", "from - to", "Tera-op/s", "ratio", title=title)
    numbers: dict[str, float] = {}
    base = statistics.median(seconds[baseline])
    for name, values in seconds.items():
        median = statistics.median(values)
        ratio, rate = base / median, tera_operations[name] / median
        is_work = tera_operations[name] == tera_operations[baseline]
        spread = f"{min(values):.3f} - {max(values):.3f}"
        table.add_row(name, f"{median:.3f}", spread, f"{rate:.3f}", f"{ratio:.2f}" if is_work else "")
        numbers |= {f"{title}.{name}.seconds": median, f"{title}.{name}.tera_operations_per_second": rate}
        if is_work:
            numbers[f"{title}.{name}.ratio"] = ratio
    Console().print(table)
    return numbers


def save(numbers: Mapping[str, float], out: Path | None) -> None:
    """Writes the numbers of a run, if a file was asked for."""
    if out is not None:
        out.write_text(json.dumps(dict(numbers), indent=2) + "\n")
