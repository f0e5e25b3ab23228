"""Pairs of a caption and an image scored a second in zero-shot retrieval: the paper's base model, random weights.

The plain way (whole forward passes in fp32, captions padded to 30 words, every head, attention step by step: kept in
tests/) against prefixes computed once, in fp32 and bf16, and against two stages. Captions of 9 to 20 word pieces, 37
regions. The prefixes and the first stage's vectors are made inside the time; its maps are fitted before. All ways are
timed in turn in one run. In two stages a query counts as many pairs as the gallery has candidates.

    python benchmarks/retrieval.py [--pairs 256] [--gallery 1000] [--known 64] [--queries 50] [--keep 20] [--repeats 3]
        [--threads 2] [--out results.json]
"""

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.hardware import Compute, ResolvedPrecision, has_native_bf16, resolve_compute
from comodal.media.tokenizer import SPECIAL_TOKENS, WordPieceTokenizer
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.tasks.retrieval.first_stage import EncodingProjections, TwoStageSearch, fit_projections
from comodal.tasks.retrieval.gallery import Gallery
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.retrieval.retrieval_ranks import list_text_answers
from machine import describe_machine, print_ratio, save, seconds_in_turn

sys.path.append(str(Path(__file__).parents[1]))
from tests.support.plain_retrieval import plain_logits

SHORTEST, LONGEST, REGIONS, SIDE = 9, 20, 36, 500
PRECISIONS: tuple[ResolvedPrecision, ...] = ("fp32", "bf16") if has_native_bf16() else ("fp32",)
PADDED_WORDS = 30  # the original's
TARGET = 3.0  # one caption, many images
ORDERS = {"one caption, many images": (0, 1), "one image, many captions": (1, 0)}  # steps of texts and of images


def random_gallery(folder: Path, size: int, seed: int) -> Gallery:
    """So many images of 36 regions and captions of 9 to 20 word pieces, of numbers drawn by chance."""
    rng = np.random.default_rng(seed)
    words = WordPieceTokenizer(
        [*SPECIAL_TOKENS, *(f"w{number}" for number in range(ViLBERTConfig().vocabulary - len(SPECIAL_TOKENS)))]
    )
    with RegionWriter(folder, ViLBERTConfig().region_feature_dim) as writer:
        for image in range(size):
            boxes = np.sort(rng.random((REGIONS, 2, 2)), axis=1).reshape(REGIONS, 4) * SIDE
            features = np.maximum(rng.standard_normal((REGIONS, ViLBERTConfig().region_feature_dim)), 0)
            writer.add(str(image), features.astype(np.float32), boxes.astype(np.float32), SIDE, SIDE)
    pairs = []
    for image in range(size):
        drawn = rng.integers(0, words.size - len(SPECIAL_TOKENS), rng.integers(SHORTEST, LONGEST + 1) - 2)
        text = " ".join(f"w{number}" for number in drawn)
        pairs.append((Caption((str(image),), text, None, str(image)), image))
    return Gallery(pairs, RegionStore(folder), words)


def ways(
    model: ViLBERT, gallery: Gallery, texts: np.ndarray, images: np.ndarray
) -> dict[str, Callable[[], np.ndarray]]:
    """How pairs can be scored, each from nothing but the gallery."""

    def plain() -> np.ndarray:
        words = [gallery.get_token_ids(number) for number in texts.tolist()]
        logits = plain_logits(model, words, [gallery.get_image(number) for number in images.tolist()], PADDED_WORDS)
        return (logits[:, 0] - logits[:, 1]).numpy()

    def cached(precision: ResolvedPrecision) -> Callable[[], np.ndarray]:
        return lambda: PairScorer(model, gallery, Compute(torch.device("cpu"), precision)).score_pairs(texts, images)

    return {"plain fp32": plain} | {f"cached {precision}": cached(precision) for precision in PRECISIONS}


def count_tera_operations(work: Callable[[], object]) -> float:
    """Floating point operations of a work, attention as explicit matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops() / 1e12


def two_stages(
    model: ViLBERT, gallery: Gallery, maps: EncodingProjections, queries: int, keep: int, precision: ResolvedPrecision
) -> None:
    """Images for some captions among all of the gallery."""
    search = TwoStageSearch(PairScorer(model, gallery, Compute(torch.device("cpu"), precision)), maps)
    search.rank_images_for_texts(np.arange(queries), list_text_answers(gallery), keep)


def compared(scores: dict[str, np.ndarray]) -> dict[str, float]:
    """How far the fast scores are from the plain ones, and their order from that of the plain ones."""
    plain, numbers = scores["plain fp32"], {"spread": float(scores["plain fp32"].std())}
    for name, found in scores.items():
        if found is not plain:
            probabilities = [torch.from_numpy(x).sigmoid() for x in (plain, found)]
            order, other = (np.argsort(np.argsort(-x)) for x in (plain, found))
            numbers |= {
                f"{name}.difference": float(np.abs(found - plain).max()),
                f"{name}.difference_of_probability": float((probabilities[0] - probabilities[1]).abs().max()),
                f"{name}.rank_correlation": float(np.corrcoef(order, other)[0, 1]),
                f"{name}.ten_best_in_common": float(((order < 10) & (other < 10)).sum() / min(10, len(order))),
            }
    return numbers


def report(title: str, seconds: dict[str, list[float]], pairs: dict[str, int]) -> dict[str, float]:
    """Prints pairs a second, medians and spreads, and the ratio to the plain way."""
    table = Table("way", "pairs/s", "from - to", "ratio", title=title)
    rates = {name: sorted(pairs[name] / value for value in values) for name, values in seconds.items()}
    base, numbers = statistics.median(rates["plain fp32"]), dict[str, float]()
    for name, found in rates.items():
        median = statistics.median(found)
        table.add_row(name, f"{median:.2f}", f"{found[0]:.2f} - {found[-1]:.2f}", f"{median / base:.2f}")
        numbers |= {f"{title}.{name}.pairs_per_second": median, f"{title}.{name}.ratio": median / base}
    Console().print(table)
    return numbers


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--gallery", type=int, default=1000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--known", type=int, default=64, help="pairs that fit the maps of the first stage")
    parser.add_argument("--keep", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = ViLBERT(ViLBERTConfig()).eval()
    machine = describe_machine()
    numbers = {name: float(getattr(options, name)) for name in ("threads", "pairs", "gallery", "queries", "keep")}
    with tempfile.TemporaryDirectory() as folder:
        gallery = random_gallery(Path(folder) / "regions", max(options.gallery, options.pairs), seed=0)
        maps = fit_projections(
            PairScorer(model, random_gallery(Path(folder) / "train", options.known, seed=1), resolve_compute()), seed=0
        )
        steps, still = np.arange(options.pairs), np.zeros(options.pairs, np.int64)
        for title, (of_texts, of_images) in ORDERS.items():
            scorers = ways(model, gallery, steps if of_texts else still, steps if of_images else still)
            found = compared({name: work() for name, work in scorers.items()})
            works: dict[str, Callable[[], object]] = {**scorers}
            counts = dict.fromkeys(works, options.pairs)
            if title == next(iter(ORDERS)):
                for precision in PRECISIONS:
                    name = f"two stages {precision}"
                    works[name] = lambda p=precision: two_stages(model, gallery, maps, options.queries, options.keep, p)
                    counts[name] = options.queries * len(gallery.counts)
            numbers |= report(title, seconds_in_turn(works, options.repeats), counts)
            numbers |= {f"{title}.{name}": value for name, value in found.items()}
            numbers[f"{title}.tera_operations"] = count_tera_operations(works["cached fp32"])
            print(", ".join(f"{name} {value:.3g}" for name, value in found.items()))
    first = next(iter(ORDERS))
    seconds = options.pairs / numbers[f"{first}.plain fp32.pairs_per_second"]
    limit = seconds * machine["machine.matrix product.tera_operations_per_second"] / numbers[f"{first}.tera_operations"]
    ratio = numbers[f"{first}.cached fp32.ratio"]
    print_ratio(f"zero-shot retrieval, {first}, cached fp32 and plain fp32", ratio, TARGET, machine, limit)
    save(numbers | machine, options.out)


if __name__ == "__main__":
    main()
