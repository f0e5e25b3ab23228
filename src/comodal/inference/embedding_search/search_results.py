"""The result of a search, its printed table and its page."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import UInt8

from comodal.analysis.pages.html_page import write_page
from comodal.analysis.pages.page_parts import (
    PageImage,
    PageImageRow,
    PageSection,
    encode_audio_uri,
    encode_photo_uri,
)
from comodal.console import print_json, print_line
from comodal.media.audio import read_audio
from comodal.media.image import read_image, resize_short_side
from comodal.media.storage.archive_samples import detect_media_kind
from comodal.media.video import iterate_frames

ItemKind = Literal["image", "audio"]
HIT_THUMBNAIL_SIDE = 224  # short side of an image on a page, in pixels
PREVIEW_SECONDS, PREVIEW_SAMPLE_RATE = 3.0, 24_000  # of the audio on a page


class SearchHit(NamedTuple):
    """A file with its score, and in audio and video the time of its best window or frame, in seconds."""

    path: Path
    score: float
    seconds: float | None = None


@dataclass(frozen=True)
class SearchResult:
    """The best files, with statistics of the search.

    Args:
        query: The text, or the name of the file.
        score_kind: What the scores are: a cosine, a score of retrieval, or the probability of alignment.
        best: The best files, in descending order.
        num_files: Number of files in the index.
        num_scored: Number of images, frames or windows that the last stage scored.
        first_stage_milliseconds: Of the first stage, for all files; None without a first stage.
        recall: Recall of the first stage, measured on held-out captions; None if it was not measured.
        seconds: Duration of the whole search.
        item_kind: Whether images (with frames of videos) or audio (with that of videos) were searched.
    """

    query: str
    score_kind: str
    best: Sequence[SearchHit]
    num_files: int
    num_scored: int
    first_stage_milliseconds: float | None
    recall: float | None
    seconds: float
    item_kind: ItemKind = "image"


def format_time(seconds: float) -> str:
    """A time as minutes and seconds, such as 1:02.5."""
    return f"{int(seconds // 60)}:{seconds % 60:04.1f}"


def print_search_result(result: SearchResult, as_json: bool) -> None:
    """Prints the result as text or as JSON."""
    if as_json:
        best = [hit._asdict() | {"path": str(hit.path)} for hit in result.best]
        print_json(vars(result) | {"best": best})
        return
    has_times = any(hit.seconds is not None for hit in result.best)
    print_line(f"{result.score_kind:>11}  {'    time  ' if has_times else ''}{result.item_kind}")
    for hit in result.best:
        time = "" if hit.seconds is None else format_time(hit.seconds)
        print_line(f"{hit.score:11.3f}  {f'{time:>8}  ' if has_times else ''}{hit.path}")


def write_search_page(out: Path, result: SearchResult) -> None:
    """Writes a page of thumbnails, frames and audio."""
    hits = [make_page_hit(hit, rank, result.item_kind) for rank, hit in enumerate(result.best, 1)]
    text = f"The best {len(result.best):,} of {result.num_files:,} files by {result.score_kind}."
    write_page(out, result.query, [PageSection("Search results", text, [PageImageRow(hits)])])


def make_page_hit(hit: SearchHit, rank: int, item_kind: ItemKind) -> PageImage:
    """A hit with its thumbnail, its frame, or the audio from its time on."""
    title, name = f"{rank}. {hit.score:.3f}", hit.path.name
    caption = name if hit.seconds is None else f"{name}, {format_time(hit.seconds)}"
    if item_kind == "audio":
        waveform = read_audio(hit.path, PREVIEW_SAMPLE_RATE, hit.seconds or 0.0, PREVIEW_SECONDS)
        return PageImage(name, "", title, caption, encode_audio_uri(waveform, PREVIEW_SAMPLE_RATE))
    is_video = detect_media_kind(name) == "video"
    image = read_frame(hit.path, hit.seconds or 0.0) if is_video else read_image(hit.path)
    thumbnail = resize_short_side(image, min(HIT_THUMBNAIL_SIDE, *image.shape[:2]))
    return PageImage(name, encode_photo_uri(thumbnail), title, caption)


def read_frame(path: Path, seconds: float) -> UInt8[np.ndarray, "height width 3"]:
    """The frame of a video at a time, which one of its frames in steps of that time is."""
    frames = iterate_frames(path, 1 / seconds if seconds else 1.0)
    time, frame = next(frames)
    while time < seconds - 1e-3 and (following := next(frames, None)) is not None:
        time, frame = following
    return frame
