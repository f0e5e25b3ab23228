"""What the benchmarks of models share: timing in turn, the machine's own ceiling, and one table and JSON file."""

import json
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table


def seconds_in_turn(works: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Each work once to warm up, then all of them in turn, so that a busy moment hits all alike."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def matrix_product(dtype: torch.dtype) -> tuple[float, Callable[[], object]]:
    """The 10^12 floating point operations of a 2048^3 product, and the product: what the machine can do at best."""
    left, right = torch.randn(2048, 2048).to(dtype), torch.randn(2048, 2048).to(dtype)
    return 2 * 2048**3 / 1e12, lambda: left @ right


def report(
    title: str, seconds: Mapping[str, list[float]], tera_operations: Mapping[str, float], baseline: str
) -> dict[str, float]:
    """Prints medians, spreads and ratios to the baseline, and returns them with flat keys."""
    table = Table("what", "seconds", "from - to", "Tera-op/s", "ratio", title=title)
    numbers = {}
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
