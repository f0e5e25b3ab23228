"""`comodal prepare tokens`: fits or loads a codebook, assigns a visual token to every region, and writes a page about
them.

The store is read in blocks, so that memory does not grow with it. The old tokens of a store are removed before any file
is replaced. After an interruption, the store has no tokens or all of them, and the command can be run again.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from comodal.analysis.pages.token_page import TokenRegion, TokenUse, VisualTokenSummary, build_token_page
from comodal.console import Table
from comodal.data.regions.region_store import (
    CLASSES_FILE,
    TOKENS_FILE,
    RegionStore,
    choose_token_dtype,
    compute_spatials,
    register_visual_tokens,
    remove_visual_tokens,
)
from comodal.errors import DataError
from comodal.files import write_atomically, write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.models.checkpoint import read_model_about, save_model
from comodal.models.codebook.clustering import choose_tree_shape, fit_codebook
from comodal.models.codebook.codebook import Codebook, find_codebook_folder, load_codebook
from comodal.progress import track_progress

REGIONS_PER_BLOCK = 8192  # regions in memory at a time
EXAMPLES_PER_TOKEN = 8  # regions shown of each token
MAX_SHOWN_TOKENS = 60  # tokens on the page


@dataclass(frozen=True)
class CodebookOptions:
    """How a codebook of visual tokens is fitted.

    Args:
        tokens: size of the codebook; up to 2,000 by flat k-means, beyond by a tree (20736 is 12^4).
        depth: levels of the tree; 1 is flat k-means.
        projection: number of principal components that distances are computed in.
        whitening: each component is divided by its std to this power.
        sample: number of regions that the codebook is fitted on; a million take 1 GB of memory.
        per_image: maximum number of these from one image.
        min_area_fraction: regions below this fraction of the image's area are left out of the sample.
        seed: of the sample and of k-means.
    """

    tokens: int = 1600
    depth: int | None = None
    projection: int = 256
    whitening: float = 0.5
    sample: int = 1_000_000
    per_image: int = 8
    min_area_fraction: float = 0.001
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError if a number is out of range."""
        if self.per_image < 1 or self.sample < self.tokens or not 0.0 <= self.min_area_fraction < 1.0:
            raise ValueError(
                f"per_image ({self.per_image}) must be at least 1, sample ({self.sample}) at least tokens "
                f"({self.tokens}), min_area_fraction ({self.min_area_fraction}) from 0 to below 1"
            )


DEFAULT_CODEBOOK = CodebookOptions()


@flatten_parameters
def prepare_tokens(
    store: Path,
    fit: CodebookOptions = DEFAULT_CODEBOOK,
    apply: Path | None = None,
    classes: bool = False,
    images: Path | None = None,
) -> VisualTokenSummary:
    """Assigns a visual token to every region of a store: writes STORE/tokens.bin, STORE/codebook and STORE/tokens.html.

    Args:
        store: region store.
        fit: how a codebook is fitted.
        apply: use this codebook, or that of this store, instead of fitting one.
        classes: also write class probabilities, a soft assignment to the nearest tokens, for a store without those of a
            classifier; 2 bytes for each region and token.
        images: folder of the images, for a page that shows regions.

    Returns:
        How often the tokens are used, and the inertia of a fitted codebook.

    Raises:
        DataError: there is no store, it has too few regions, or its features do not fit the codebook.

    Examples:
        comodal prepare tokens regions/ --tokens 1600 --images coco/train2014
        comodal prepare tokens validation/ --apply regions/
    """
    fit.check()
    region_store = RegionStore(store)
    if classes and region_store.classes and not region_store.about.get("classes_from_tokens"):
        raise DataError(f"{store} has the class probabilities of a classifier; they are not replaced")
    inertia: tuple[float, ...] = ()
    if apply is None:
        codebook, inertia, about = fit_store_codebook(region_store, fit)
    else:
        codebook, about = load_matching_codebook(apply, region_store), read_model_about(find_codebook_folder(apply))
    use = write_tokens(region_store, codebook, classes, about)
    page = build_token_page(
        f"Visual tokens of {store.name}", use, inertia, collect_token_examples(region_store, use), images
    )
    write_bytes_atomically(store / "tokens.html", page.encode())
    summary = use.compute_summary(inertia)
    print_token_summary(summary)
    return summary


def fit_store_codebook(store: RegionStore, fit: CodebookOptions) -> tuple[Codebook, tuple[float, ...], dict[str, Any]]:
    """A codebook of the regions of a store, its inertia by level, and how it was made."""
    choose_tree_shape(fit.tokens, fit.depth)
    chosen = sample_regions(store, fit.sample, fit.per_image, fit.min_area_fraction, fit.seed)
    check_sample_size(store, sum(len(rows) for _, rows in chosen), fit.tokens, fit.per_image)
    read = partial(read_feature_blocks, store, chosen)
    codebook, inertia = fit_codebook(read, fit.tokens, fit.depth, fit.projection, fit.whitening, fit.seed)
    about: dict[str, Any] = {"regions": store.fingerprint, "sample": fit.sample, "per_image": fit.per_image}
    about |= {
        "min_area_fraction": fit.min_area_fraction,
        "whitening": fit.whitening,
        "seed": fit.seed,
        "inertia": list(inertia),
    }
    return codebook, inertia, about


def check_sample_size(store: RegionStore, regions: int, tokens: int, per_image: int) -> None:
    """Raises a DataError if the sample is too small for the codebook."""
    if regions < tokens:
        raise DataError(
            f"{store.folder}: {regions:,} regions (of {len(store):,} images, at most {per_image} each) cannot "
            f"be clustered to {tokens:,} tokens; use fewer --tokens or a larger --per-image"
        )


def load_matching_codebook(path: Path, store: RegionStore) -> Codebook:
    """A codebook that fits the features of a store."""
    codebook = load_codebook(path)
    if codebook.config.dim != store.dim:
        raise DataError(
            f"{path} takes features of length {codebook.config.dim}; those of {store.folder} have length {store.dim}"
        )
    return codebook


def sample_regions(
    store: RegionStore, sample: int, per_image: int, min_area_fraction: float, seed: int
) -> list[tuple[int, Int[np.ndarray, " regions"]]]:
    """Images in the order of the store with their sampled regions: at most `per_image` each, from random images."""
    generator = np.random.default_rng(seed)
    chosen: list[tuple[int, np.ndarray]] = []
    missing = sample
    for image in generator.permutation(len(store)).tolist():
        regions = store.read_regions(image)
        large = np.flatnonzero(
            compute_spatials(regions.boxes, regions.width, regions.height)[:, 4] >= min_area_fraction
        )
        sampled = np.sort(generator.permutation(large)[: min(per_image, missing)])
        chosen.append((image, sampled))
        missing -= len(sampled)
        if not missing:
            break
    return sorted(chosen, key=lambda pair: pair[0])


def read_feature_blocks(
    store: RegionStore, chosen: Iterable[tuple[int, Int[np.ndarray, " regions"] | slice]]
) -> Iterator[Float[Tensor, "regions dim"]]:
    """Features of chosen regions, about 8,192 at a time."""
    parts, count = [], 0
    for image, rows in chosen:
        features = np.asarray(store.read_regions(image).features[rows])
        if not np.isfinite(features).all():
            raise DataError(f"{store.folder}: features of image {store.ids[image]} are not finite")
        parts.append(features)
        count += len(features)
        if count >= REGIONS_PER_BLOCK:
            yield torch.from_numpy(np.concatenate(parts))
            parts, count = [], 0
    if count:
        yield torch.from_numpy(np.concatenate(parts))


def write_tokens(store: RegionStore, codebook: Codebook, classes: bool, about: dict[str, object]) -> TokenUse:
    """Writes the codebook, tokens.bin and, if requested, classes.bin; the last step adds them to the store."""
    folder, count = store.folder, codebook.config.tokens
    remove_visual_tokens(folder)
    for leftover in [
        *folder.glob(f".{TOKENS_FILE}.*.part"),
        *folder.glob(f".{CLASSES_FILE}.*.part"),
    ]:  # by an interrupted command
        leftover.unlink()
    if store.about.get("classes_from_tokens"):
        (folder / CLASSES_FILE).unlink(missing_ok=True)
    save_model(codebook, folder / "codebook", about)
    use = TokenUse(count, EXAMPLES_PER_TOKEN)
    with write_atomically(folder / TOKENS_FILE) as part, part.open("wb") as file:
        assign_tokens(store, codebook, use, file)
    if classes:
        with write_atomically(folder / CLASSES_FILE) as part, part.open("wb") as file:
            for block in read_all_feature_blocks(store):
                file.write(codebook.compute_probabilities(block).half().numpy().tobytes())
    register_visual_tokens(folder, count, count if classes else 0)
    return use


def assign_tokens(store: RegionStore, codebook: Codebook, use: TokenUse, file: BinaryIO) -> None:
    """Writes the tokens of all regions in the order of their rows, and counts them."""
    dtype, centers, first = choose_token_dtype(codebook.config.tokens), codebook.get_leaf_centers(), 0
    for block in read_all_feature_blocks(store):
        points = codebook.project(block)
        tokens = codebook.assign_tokens(points)
        use.add(first, tokens.numpy(), (points - centers[tokens]).norm(dim=1).numpy())
        file.write(tokens.numpy().astype(dtype).tobytes())
        first += len(block)


def read_all_feature_blocks(store: RegionStore) -> Iterator[Float[Tensor, "regions dim"]]:
    """Features of all regions."""
    images = track_progress(range(len(store)), "tokens")
    return read_feature_blocks(store, ((image, slice(None)) for image in images))


def collect_token_examples(store: RegionStore, use: TokenUse) -> dict[int, list[TokenRegion]]:
    """The regions of each token that the page shows."""
    examples = {}
    for token in use.select_tokens(MAX_SHOWN_TOKENS):
        examples[token] = [get_token_region(store, int(row)) for row in use.rows[token] if row >= 0]
    return examples


def get_token_region(store: RegionStore, row: int) -> TokenRegion:
    """The region in a row of the store."""
    image = int(np.searchsorted(store.firsts, row, side="right")) - 1
    regions = store.read_regions(image)
    box = regions.boxes[row - int(store.firsts[image])]
    return TokenRegion(store.ids[image], regions.width, regions.height, box.tolist())


def print_token_summary(summary: VisualTokenSummary) -> None:
    """Prints the summary at the end of the command."""
    table = Table("visual tokens", "", right=[1])
    table.add_row("tokens", f"{summary.tokens:,}")
    table.add_row("used", f"{summary.used:,}")
    table.add_row("perplexity", f"{summary.perplexity:,.1f}")
    table.add_row("max_count", f"{summary.max_count:,}")
    table.add_row("min_count", f"{summary.min_count:,}")
    for level, value in enumerate(summary.inertia, 1):
        table.add_row(f"inertia, level {level}", f"{value:.4f}")
    table.show()
