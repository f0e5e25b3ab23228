"""Embeddings a second: the fast path against the plain model in fp32, timed in turn in one run, paper's full network.

Prints also the machine's own ceiling (matrix products of 2048^3), and how much of it the fast path reaches: on a CPU
without AMX bf16 products are only about three times as fast as fp32, and no way of calling them can beat that. bf16 is
left out where the hardware does not compute it.

    python benchmarks/embedding.py [--batch 8] [--width 64] [--repeats 5] [--threads 2] [--out results.json]
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from comodal.hardware import DTYPES, has_native_bf16
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG, L3Net
from machine import describe_machine, matrix_product, print_ratio, report, save, seconds_in_turn

TERA_OPERATIONS = {"image": 2 * 10.26e9 / 1e12, "sound": 2 * 10.21e9 / 1e12}  # one forward pass of a tower
WIDTH = PAPER_L3NET_CONFIG.width
TARGET = 1.4  # in fp32


def count_tera_operations(kind: str, batch: int, width: int) -> float:
    """Of a batch; for other widths than the paper's approximately, since the first convolution has fixed channels."""
    return batch * TERA_OPERATIONS[kind] * (width / WIDTH) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--width", type=int, default=WIDTH, help="filters of the first block; the paper's: 64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    numbers = {"threads": float(options.threads), **machine}
    types = [name for name, dtype in DTYPES.items() if dtype != torch.bfloat16 or has_native_bf16()]
    plain = L3Net(replace(PAPER_L3NET_CONFIG, width=options.width)).eval()
    quick = {name: make_fast_l3net(plain, DTYPES[name]) for name in types}
    image = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8)
    sound = 0.1 * torch.randn(options.batch, 48_000)
    works: dict[str, dict[str, Callable[[], object]]] = {
        "image": {f"fast {name}": lambda model=model: model.embed_image(image) for name, model in quick.items()},
        "sound": {f"fast {name}": lambda model=model: model.embed_audio(sound) for name, model in quick.items()},
    }
    works["image"]["plain fp32"] = lambda: plain.embed_image(image)
    works["sound"]["plain fp32"] = lambda: plain.embed_audio(sound)
    for kind, ways in works.items():
        operations = dict.fromkeys(ways, count_tera_operations(kind, options.batch, options.width))
        for name in types:
            operations[f"matrix product {name}"], ways[f"matrix product {name}"] = matrix_product(DTYPES[name])
        with torch.inference_mode():
            seconds = seconds_in_turn(ways, options.repeats)
        numbers |= report(kind, seconds, operations, "plain fp32")
        best = types[-1]
        reached = numbers[f"{kind}.fast {best}.tera_operations_per_second"]
        ceiling = numbers[f"{kind}.matrix product {best}.tera_operations_per_second"]
        numbers[f"{kind}.of_ceiling"] = reached / ceiling
        print(f"{kind}: {reached / ceiling:.0%} of the {best} matrix product, {options.threads} threads, mallopt off")
        plain_rate = numbers[f"{kind}.plain fp32.tera_operations_per_second"]
        limit = numbers[f"{kind}.matrix product fp32.tera_operations_per_second"] / plain_rate
        ratio = numbers[f"{kind}.fast fp32.ratio"]
        print_ratio(f"{kind} embedding, fused fp32 and eager fp32", ratio, TARGET, machine, limit)
    save(numbers, options.out)


if __name__ == "__main__":
    main()
