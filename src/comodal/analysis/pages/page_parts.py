"""The parts of a page as data classes. The templates of this folder turn them into HTML, and escape every text."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from comodal.media.image import encode_jpeg

MIN_WIDE_INCHES = 8.0  # width from which a figure is as wide as the page


@dataclass(frozen=True)
class PagePlot:
    """A figure.

    Args:
        source: The image as a data URI.
        alt: Its text alternative.
        is_wide: Whether it is as wide as the page: on a narrow screen it is scrolled, so that its text can be read.
    """

    kind: ClassVar[str] = "plot"
    source: str
    alt: str
    is_wide: bool = False


@dataclass(frozen=True)
class PageImage:
    """One image of a row.

    Args:
        alt: The text alternative.
        source: The image as a data URI; empty where it could not be read: then only the caption is shown.
        title: First line of the caption, bold.
        caption: Text below the image.
        audio: Audio as a data URI, played below the image.
    """

    alt: str
    source: str = ""
    title: str = ""
    caption: str = ""
    audio: str = ""


@dataclass(frozen=True)
class PageImageRow:
    """Images side by side, with a label and a note in front of them.

    Args:
        images: From left to right.
        label: What the row is about.
        note: More about it, in small type.
        is_wide: Whether the images are figures rather than thumbnails.
    """

    kind: ClassVar[str] = "image_row"
    images: Sequence[PageImage]
    label: str = ""
    note: str = ""
    is_wide: bool = False


class PageColumn(NamedTuple):
    """A column: text, formatted numbers, or a fraction from 0 to 1 that is shown as a number with a bar."""

    heading: str
    kind: Literal["text", "number", "bar"] = "text"


class PageRow(NamedTuple):
    """The cells of a row, one for each column; the first is the heading of the row."""

    cells: Sequence[str | float]
    is_main: bool = False  # the row that the others are compared with


@dataclass(frozen=True)
class PageTable:
    """A table with headings of columns and rows."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: Sequence[PageColumn]
    rows: Sequence[PageRow]


class PageFact(NamedTuple):
    """A formatted number, and what it is."""

    number: str
    meaning: str


@dataclass(frozen=True)
class PageFacts:
    """Large numbers."""

    kind: ClassVar[str] = "facts"
    facts: Sequence[PageFact]


@dataclass(frozen=True)
class PageMark:
    """A word in the color of correct or of incorrect predictions."""

    kind: ClassVar[str] = "mark"
    text: str
    is_correct: bool


@dataclass(frozen=True)
class PageColumns:
    """Blocks side by side, or below each other on a narrow screen."""

    kind: ClassVar[str] = "columns"
    blocks: Sequence["PageBlock"]


@dataclass(frozen=True)
class PageDetails:
    """Blocks that open and close with their summary."""

    kind: ClassVar[str] = "details"
    summary: str
    blocks: Sequence["PageBlock"]
    is_open: bool = False


PageBlock = PagePlot | PageImageRow | PageTable | PageFacts | PageMark | PageColumns | PageDetails


@dataclass(frozen=True)
class PageSection:
    """A titled section of a page.

    Args:
        title: The heading.
        text: The text below it.
        blocks: Figures, tables and images.
        numbers: The numbers that the section shows, as JSON values.
    """

    title: str
    text: str = ""
    blocks: Sequence[PageBlock] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)


def embed_figure(figure: Figure, alt: str) -> PagePlot:
    """A figure of matplotlib as PNG."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    is_wide = float(figure.get_figwidth()) >= MIN_WIDE_INCHES
    return PagePlot(encode_data_uri(png.getvalue(), "image/png"), alt, is_wide)


def encode_photo_uri(image: UInt8[np.ndarray, "height width 3"]) -> str:
    """An image as the data URI of a JPEG, a tenth of the size of a PNG."""
    return encode_data_uri(encode_jpeg(image, quality=85), "image/jpeg")


def encode_audio_uri(waveform: Float[np.ndarray, " samples"], sample_rate: int) -> str:
    """Audio as the data URI of an MP3, which every browser plays: about 15 kB per second."""
    memory = io.BytesIO()
    soundfile.write(memory, np.clip(waveform, -1.0, 1.0), sample_rate, format="MP3")
    return encode_data_uri(memory.getvalue(), "audio/mpeg")


def encode_data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a data URI: a page holds everything that it shows."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
