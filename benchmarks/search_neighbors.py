"""The first stage of a search among N vectors: exact and approximate, time, recall@10, size and build time.

Random vectors have no clusters, the hardest case for an approximate search. Clustered vectors are 1,000 random centers
with noise of the same length. Queries are other random vectors, or noisy copies of stored ones. Exact and approximate
search are timed in turn.

    python benchmarks/search_neighbors.py [--vectors 1000000] [--dim 256] [--queries 50] [--out results.json]
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import numpy as np

from comodal.inference.embedding_search.neighbors import ExactNeighbors, build_neighbors
from machine import clock, describe_machine, save

CLUSTERS, NEW_FRACTION, BLOCK, TOP_K = 1_000, 0.001, 50_000, 10


def make_vectors(kind: str, rows: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """Vectors of length one."""
    centers = rng.standard_normal((CLUSTERS, dim), np.float32)
    vectors = np.empty((rows, dim), np.float32)
    for start in range(0, rows, BLOCK):
        block = rng.standard_normal((min(BLOCK, rows - start), dim), np.float32)
        if kind == "clustered":
            block += centers[rng.integers(0, CLUSTERS, len(block))]
        vectors[start : start + len(block)] = block / np.linalg.norm(block, axis=1, keepdims=True)
    return vectors


def make_queries(kind: str, vectors: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Random vectors, or stored vectors with a third of noise."""
    queries = rng.standard_normal((count, vectors.shape[1])).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    if kind == "clustered":
        queries = vectors[rng.integers(0, len(vectors), count)] + queries / 3
    return queries / np.linalg.norm(queries, axis=1, keepdims=True)


def measure(kind: str, options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Builds the index, adds a few vectors, and compares it with exact search."""
    rng = np.random.default_rng(0)
    vectors = make_vectors(kind, options.vectors, options.dim, rng)
    queries = make_queries(kind, vectors, options.queries, rng)
    num_old = round(options.vectors * (1 - NEW_FRACTION))
    start = clock()
    build_neighbors(folder / kind, vectors[:num_old], exact_below=0)
    built = clock()
    approximate = build_neighbors(folder / kind, vectors, exact_below=0)
    extended, exact = clock(), ExactNeighbors(vectors)
    seconds: dict[str, list[float]] = {"exact": [], "approximate": []}
    recalls = []
    exact.find(queries[0], TOP_K)
    approximate.find(queries[0], TOP_K)
    for query in queries:
        found = {}
        for name, ways in (("exact", exact), ("approximate", approximate)):
            begin = clock()
            found[name] = ways.find(query, TOP_K).indices
            seconds[name].append(clock() - begin)
        recalls.append(float(np.isin(found["exact"], found["approximate"]).mean()))
    megabytes = sum(path.stat().st_size for path in folder.glob(f"{kind}*")) / 1e6
    for name, times in seconds.items():
        print(
            f"{kind}, {name}: {1000 * statistics.median(times):.1f} ms, from {1000 * min(times):.1f} to "
            f"{1000 * max(times):.1f}"
        )
    print(f"{kind}: recall@{TOP_K} {np.mean(recalls):.4f} of {len(recalls)} queries (target: 0.95)")
    print(
        f"{kind}: {megabytes:.0f} MB next to {vectors.nbytes / 1e6:.0f} MB of vectors; built in {built - start:.1f} s; "
        f"{options.vectors - num_old:,} more in {extended - built:.2f} s"
    )
    return {
        f"{kind}.recall": float(np.mean(recalls)),
        f"{kind}.exact.seconds": statistics.median(seconds["exact"]),
        f"{kind}.approximate.seconds": statistics.median(seconds["approximate"]),
        f"{kind}.megabytes": megabytes,
        f"{kind}.build.seconds": built - start,
        f"{kind}.extend.seconds": extended - built,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    numbers = describe_machine()
    for kind in ("random", "clustered"):
        with tempfile.TemporaryDirectory() as name:
            numbers |= measure(kind, options, Path(name))
    ratios = [
        numbers[f"{kind}.exact.seconds"] / numbers[f"{kind}.approximate.seconds"] for kind in ("random", "clustered")
    ]
    numbers["ratio"] = min(ratios)
    print(f"approximate search is {ratios[0]:.1f} (random) and {ratios[1]:.1f} (clustered) times as fast")
    save(numbers, options.out)


if __name__ == "__main__":
    main()
