"""The visual tokens of a region store: how often each is used, and the regions nearest to its center."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.analysis.pages.html_page import render_page
from comodal.analysis.pages.page_parts import (
    PageColumn,
    PageFact,
    PageFacts,
    PageImage,
    PageImageRow,
    PageRow,
    PageSection,
    PageTable,
    embed_figure,
    encode_data_uri,
)
from comodal.errors import MediaError
from comodal.media.image import encode_jpeg, read_image, resize_short_side
from comodal.media.storage.suffixes import IMAGE_SUFFIXES

CROP_PIXELS = 84  # short side of a region on the page, in pixels
TOKEN_FACTS = {
    "tokens": "tokens",
    "used": "used tokens",
    "perplexity": "perplexity",
    "max_count": "regions of the most frequent token",
    "min_count": "regions of the rarest token",
}


class TokenRegion(NamedTuple):
    """A region: the id and size in pixels of its image, and its box x1, y1, x2, y2."""

    image: str
    width: int
    height: int
    box: Sequence[float]


@dataclass(frozen=True)
class VisualTokenSummary:
    """How often the tokens of a region store are used.

    Args:
        tokens: Size of the codebook.
        used: Number of tokens that a region has.
        perplexity: The exponential of the entropy of the token frequencies.
        max_count: Regions of the most frequent token.
        min_count: Regions of the rarest token.
        inertia: Mean squared distance at each level of the codebook, if it was fitted.
    """

    tokens: int
    used: int
    perplexity: float
    max_count: int
    min_count: int
    inertia: tuple[float, ...] = ()


class TokenUse:
    """Counts tokens as they are assigned, and keeps the rows of the regions nearest to each center."""

    def __init__(self, tokens: int, examples: int) -> None:
        self.counts = np.zeros(tokens, np.int64)
        self.rows = np.full((tokens, examples), -1)
        self.distances = np.full((tokens, examples), np.inf, np.float32)

    def add(
        self, first_row: int, tokens: Int[np.ndarray, " regions"], distances: Float[np.ndarray, " regions"]
    ) -> None:
        """Adds regions in consecutive rows of the store, with their distances from the centers of their tokens."""
        counts = np.bincount(tokens, minlength=len(self.counts))
        self.counts += counts
        order = np.lexsort((distances, tokens))
        sorted_tokens = tokens[order]
        rank = np.arange(len(order)) - (np.cumsum(counts) - counts)[sorted_tokens]  # 0 for a token's nearest
        examples = self.rows.shape[1]
        is_near = rank < examples
        rows, all_distances = np.full_like(self.rows, -1), np.full_like(self.distances, np.inf)
        rows[sorted_tokens[is_near], rank[is_near]] = first_row + order[is_near]
        all_distances[sorted_tokens[is_near], rank[is_near]] = distances[order[is_near]]
        rows, all_distances = np.concatenate([self.rows, rows], 1), np.concatenate([self.distances, all_distances], 1)
        best = np.argsort(all_distances, axis=1, kind="stable")[:, :examples]
        self.rows, self.distances = np.take_along_axis(rows, best, 1), np.take_along_axis(all_distances, best, 1)

    def compute_summary(self, inertia: tuple[float, ...] = ()) -> VisualTokenSummary:
        """Summarizes the counts; `inertia` is that of the fitted codebook."""
        return VisualTokenSummary(
            tokens=len(self.counts),
            used=int((self.counts > 0).sum()),
            perplexity=compute_perplexity(self.counts),
            max_count=int(self.counts.max()),
            min_count=int(self.counts.min()),
            inertia=inertia,
        )

    def select_tokens(self, count: int) -> list[int]:
        """Used tokens, equally spaced from the most to the least frequent."""
        order = np.argsort(-self.counts, kind="stable")[: int((self.counts > 0).sum())]
        indices = np.unique(np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int))
        return order[indices].tolist()


def compute_perplexity(counts: Int[np.ndarray, " tokens"]) -> float:
    """The exponential of the entropy of token frequencies: the number of tokens if all are equally frequent."""
    frequencies = counts[counts > 0] / max(counts.sum(), 1)
    return float(np.exp(-(frequencies * np.log(frequencies)).sum()))


def build_token_page(
    title: str, use: TokenUse, inertia: Sequence[float], examples: dict[int, list[TokenRegion]], images: Path | None
) -> str:
    """One self-contained HTML page.

    Args:
        title: Of the page.
        use: Counts of the tokens.
        inertia: Mean squared distance at each level, if the codebook was fitted by this command.
        examples: Regions nearest to the center of each token that is shown.
        images: Folder of the images, for crops.
    """
    summary = asdict(use.compute_summary())
    facts = [
        PageFact(f"{summary[name]:,.{1 if name == 'perplexity' else 0}f}", label) for name, label in TOKEN_FACTS.items()
    ]
    files = index_images_by_name(images) if images else {}
    counts = PageSection(
        "Token frequencies",
        "From the most frequent to the rarest. Perplexity is the exponential of the entropy of the frequencies: the "
        "number of tokens if all are equally frequent.",
        [PageFacts(facts), embed_figure(draw_token_counts(use.counts), "regions by token, sorted by frequency")],
    )
    shown = PageSection(
        "Regions of each token",
        f"{len(examples)} tokens from the most to the least frequent, each with the regions nearest to its center.",
        [build_token_row(token, use.counts, regions, files) for token, regions in examples.items()],
    )
    return render_page(title, [counts, *build_inertia_sections(inertia), shown])


def draw_token_counts(counts: Int[np.ndarray, " tokens"]) -> Figure:
    """Regions by token, sorted, on a logarithmic scale."""
    figure = Figure(figsize=(9.0, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    used = np.sort(counts[counts > 0])[::-1]
    axes.fill_between(np.arange(1, len(used) + 1), used, 0.5, step="mid", color="#3b6ea5", linewidth=0)
    axes.set_yscale("log")
    axes.set_xlabel("token, by frequency")
    axes.set_ylabel("regions")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def build_inertia_sections(inertia: Sequence[float]) -> list[PageSection]:
    """The inertia of each level as a table, if it is known."""
    if not inertia:
        return []
    rows = [PageRow((str(level), f"{value:.4f}")) for level, value in enumerate(inertia, 1)]
    table = PageTable("Inertia by level", [PageColumn("level"), PageColumn("inertia", "number")], rows)
    text = (
        "Mean squared distance of the sampled regions to the chosen node. Features have length 1 after the projection."
    )
    return [PageSection("Levels of the codebook", text, [table])]


def build_token_row(
    token: int, counts: Int[np.ndarray, " tokens"], regions: Sequence[TokenRegion], files: dict[str, Path]
) -> PageImageRow:
    """One token: its id, its count, its nearest regions."""
    images = [build_region_image(region, files) for region in regions]
    return PageImageRow(images, f"token {token}", f"{counts[token]:,} regions")


def build_region_image(region: TokenRegion, files: dict[str, Path]) -> PageImage:
    """A crop if the image can be read; otherwise the position of the region as text."""
    box = ", ".join(f"{side:.0f}" for side in region.box)
    text = f"{region.image}: {box}"
    names = (region.image, region.image.rpartition(".")[0], Path(region.image).name, Path(region.image).stem)
    path = next((files[name] for name in names if name in files), None)
    jpeg = crop_region(path, region) if path else None
    return PageImage(text, encode_data_uri(jpeg, "image/jpeg")) if jpeg else PageImage(text, caption=text)


def crop_region(path: Path, region: TokenRegion) -> bytes | None:
    """The region as a small JPEG, or None if it cannot be cropped. The file may have another size than in the store."""
    try:
        image = read_image(path)
    except MediaError:
        return None
    height, width, _ = image.shape
    scale = np.array([width / region.width, height / region.height] * 2)
    left, top, right, bottom = (
        np.clip(np.array(region.box) * scale, 0, [width, height] * 2).round().astype(int).tolist()
    )
    if right <= left or bottom <= top:
        return None
    short, long = sorted((bottom - top, right - left))
    size = max(1, min(CROP_PIXELS, 2 * CROP_PIXELS * short // long))
    return encode_jpeg(resize_short_side(image[top:bottom, left:right], size), quality=80)


def index_images_by_name(folder: Path) -> dict[str, Path]:
    """The images of a folder by name without suffix, with and without their subfolders."""
    paths = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in IMAGE_SUFFIXES]
    paths_by_relative_name = {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}
    return {path.stem: path for path in paths} | paths_by_relative_name
