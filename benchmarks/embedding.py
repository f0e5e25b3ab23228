"""Embeddings a second: the fast path against the plain model in fp32, timed in turn in one run, paper's full network.

Prints also the machine's own ceiling (matrix products of 2048^3), and how much of it the fast path reaches: on a CPU
without AMX bf16 products are only about three times as fast as fp32, and no way of calling them can beat that.

    python benchmarks/embedding.py [--batch 8] [--repeats 5] [--threads 2] [--out results.json]
"""

import argparse
from pathlib import Path

import torch

from comodal.models.inference import fast
from comodal.models.l3net import PAPER, L3Net
from machine import matrix_product, report, save, seconds_in_turn

TERA_OPERATIONS = {"image": 2 * 10.26e9 / 1e12, "sound": 2 * 10.21e9 / 1e12}  # one forward pass of a tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    plain = L3Net(PAPER).eval()
    bf16, fp32 = fast(plain, torch.bfloat16), fast(plain, torch.float32)
    image = torch.randint(0, 256, (options.batch, 3, 224, 224), dtype=torch.uint8)
    sound = 0.1 * torch.randn(options.batch, 48_000)
    works = {
        "image": {
            "plain fp32": lambda: plain.embed_image(image),
            "fast fp32": lambda: fp32.embed_image(image),
            "fast bf16": lambda: bf16.embed_image(image),
        },
        "sound": {
            "plain fp32": lambda: plain.embed_sound(sound),
            "fast fp32": lambda: fp32.embed_sound(sound),
            "fast bf16": lambda: bf16.embed_sound(sound),
        },
    }
    numbers = {"threads": float(options.threads)}
    for kind, ways in works.items():
        operations = dict.fromkeys(ways, options.batch * TERA_OPERATIONS[kind])
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
            operations[f"matrix product {name}"], ways[f"matrix product {name}"] = matrix_product(dtype)
        with torch.inference_mode():
            seconds = seconds_in_turn(ways, options.repeats)
        numbers |= report(kind, seconds, operations, "plain fp32")
        reached = numbers[f"{kind}.fast bf16.tera_operations_per_second"]
        ceiling = numbers[f"{kind}.matrix product bf16.tera_operations_per_second"]
        numbers[f"{kind}.of_ceiling"] = reached / ceiling
        print(f"{kind}: {reached / ceiling:.0%} of the bf16 matrix product, {options.threads} threads, mallopt off")
    save(numbers, options.out)


if __name__ == "__main__":
    main()
