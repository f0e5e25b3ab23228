"""`comodal match`: whether an image or a video corresponds to audio, when, and where in the image.

A moment is a frame and the second of audio around it. The whole frame is scored at the scale of training (short side
8/7 of the model's image size), so that the prediction and its localization map are of the same image. Memory holds one
frame and one second (on a GPU 64 of each), and for each moment its prediction, its map and a JPEG.
"""

import io
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8

from comodal.analysis.localization import find_map_peak, predict_by_position
from comodal.analysis.pages.match_page import MatchMoment, draw_match_moments, write_match_page
from comodal.console import Table, print_json, print_line
from comodal.errors import DataError, MediaError
from comodal.files import write_bytes_atomically
from comodal.hardware import DeviceName, Precision, resolve_compute
from comodal.media.audio import resample_audio, stream_audio
from comodal.media.image import encode_jpeg, read_image, resize_short_side
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from comodal.media.user_inputs import to_rgb_array, to_waveform
from comodal.media.video import MAX_SILENT_PEAK, iterate_frames
from comodal.models.l3net.l3net import L3Net, load_l3net

MAX_SIDE_RATIO = 16  # maximum aspect ratio of an image, as of a video
GPU_MOMENTS = 64  # moments on a GPU; a CPU takes one at a time
MAX_MISSING_FRACTION = 0.05  # of the shortest audio: encoders cut off a few milliseconds
MAX_TABLE_ROWS = 20  # of the printed table
DRAWING_SUFFIXES = {".png", ".html"}


@dataclass(frozen=True)
class MatchResult:
    """The prediction for each moment; `together` is the mean over those that are not silent."""

    medium: Path
    sound: Path
    moments: tuple[MatchMoment, ...]

    @property
    def together(self) -> float:
        """P(match), from 0 to 1."""
        return float(np.mean([moment.together for moment in self.moments if moment.together is not None]))

    def as_json(self) -> dict[str, Any]:
        """Values for JSON; x and y are fractions of the upright image, from its upper left."""
        moments = [{"seconds": round(m.seconds, 3), "together": m.together, "x": m.x, "y": m.y} for m in self.moments]
        return {"medium": str(self.medium), "sound": str(self.sound), "together": self.together, "moments": moments}


def match(
    files: list[Path],
    model: Path,
    hop_seconds: float = 1.0,
    json: bool = False,
    out: Path | None = None,
    device: DeviceName = "auto",
    precision: Precision = "auto",
) -> MatchResult:
    """Predicts whether an image or a video corresponds to audio: the probability over time, and the position.

    Args:
        files: An image or a video, then audio (or a video, whose audio is used); a video alone is matched with its own
            audio.
        model: Run folder or model folder of an L3-Net.
        hop_seconds: Time between predictions; each takes one second of audio (or the model's window).
        json: Print JSON instead of a table.
        out: An image (.png) or a page (.html) to write: predictions over time, and frames with localization maps.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Returns:
        The predictions; `.together` is their mean without silent moments.

    Raises:
        MediaError: A file cannot be read, has no audio or video stream, or is silent or too short.
        DataError: An image is given without audio, or more than two files are given.

    Examples:
        comodal match video.mp4 --model RUN
        comodal match picture.jpg bark.wav --model RUN --out where.png
        comodal match video.mp4 other.mp3 --model RUN --hop-seconds 0.5 --json
    """
    if out is not None and out.suffix.lower() not in DRAWING_SUFFIXES:
        raise ValueError(f"--out {out}: a drawing is a .png or a .html")
    if len(files) > 2:
        raise DataError(f"{len(files)} files; match takes a picture or a video, and a sound")
    network, compute = load_l3net(model), resolve_compute(device, precision)
    with compute.autocast():
        found = match_files(network.to(compute.device), files[0], files[1] if len(files) > 1 else None, hop_seconds)
    if json:
        print_json(found.as_json())
    else:
        print_match(found)
    if out is not None and out.suffix.lower() == ".html":
        write_match_page(out, format_match_title(found), found.together, found.moments)
    elif out is not None:
        drawing = io.BytesIO()
        draw_match_moments(format_match_title(found), found.moments).savefig(drawing, format="png", dpi=110)
        write_bytes_atomically(out, drawing.getvalue())
    return found


def match_files(
    model: L3Net, medium: Any, sound: Any = None, hop_seconds: float = 1.0, sample_rate: int | float | None = None
) -> MatchResult:
    """Predictions for an image or a video with audio, or for a video with its own audio.

    Args:
        model: In evaluation mode.
        medium: The path of an image or a video; or a PIL image, an array (height, width, 3) or a tensor (3, height,
            width) of bytes.
        sound: The path of an audio file or a video; None for the video's own audio; or an array (samples,) or (samples,
            channels), or a tensor (samples,) or (channels, samples).
        hop_seconds: Time between predictions.
        sample_rate: Of audio in memory.

    Raises:
        MediaError: A file cannot be read, has no audio or video stream, or is silent or too short.
        DataError: An image is given without audio.
        TypeError: The input is of another type.
    """
    if not 0.01 <= hop_seconds <= 3600:
        raise ValueError(f"hop_seconds ({hop_seconds}) must be from 0.01 to 3600")
    picture = None if isinstance(medium, str | Path) else to_rgb_array(medium)
    medium = Path("image in memory") if picture is not None else Path(medium)
    if picture is None and medium.suffix.lower() in AUDIO_SUFFIXES:
        raise DataError(f"{medium}: a sound; a picture or a video comes first, then the sound")
    still = picture is not None or medium.suffix.lower() in IMAGE_SUFFIXES
    if still and sound is None:
        raise DataError(f"{medium}: a picture has no sound; give a sound as the second file")
    rate = model.config.sample_rate
    if sound is None or isinstance(sound, str | Path):
        heard = medium if sound is None else Path(sound)
        blocks = stream_audio(heard, rate, block_seconds=1.0)
    else:
        samples, its_rate = to_waveform(sound, sample_rate)
        heard, blocks = Path("audio in memory"), iter([resample_audio(samples, round(its_rate), rate)])
    shown = repeat_still_image(medium, picture) if still else read_hop_frames(medium, hop_seconds)
    try:
        with closing(shown) as frames:
            moments = list(score_moments(model, medium, frames, blocks, hop_seconds))
    except MediaError as error:
        if sound is None and error.reason == RefusalReason.NO_SOUND:
            raise MediaError(medium, error.reason, f"{error.detail}; give a sound as the second file") from None
        raise
    if not moments:
        least = f"{max(model.config.sound_seconds, hop_seconds / 2):g} s"
        raise MediaError(
            heard, RefusalReason.TOO_SHORT, f"a verdict needs {least} of sound, and a picture at that time"
        )
    if all(moment.together is None for moment in moments):
        raise MediaError(heard, RefusalReason.SILENT, "nothing in it is louder than -60 dB, so nothing can be matched")
    return MatchResult(medium, heard, tuple(moments))


def score_moments(
    model: L3Net,
    medium: Path,
    frames: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    blocks: Iterable[Float[np.ndarray, " _"]],
    hop_seconds: float,
) -> Iterator[MatchMoment]:
    """Predictions for the moments at the middle of each hop, until audio or video ends."""
    rate = model.config.sample_rate
    window = round(model.config.sound_seconds * rate)
    begins = (max(0, round(hop_seconds * (place + 0.5) * rate) - window // 2) for place in count())
    middles = (hop_seconds * (place + 0.5) for place in count())
    size = round(model.config.image_size * 8 / 7)
    small = (resize_frame(picture, size, medium) for picture in frames)
    shown = zip(middles, cut_audio_windows(blocks, begins, window), small, strict=False)
    at_once = 1 if next(model.parameters()).device.type == "cpu" else GPU_MOMENTS
    while some := list(islice(shown, at_once)):
        yield from predict_moments(model, some)


def resize_frame(
    picture: UInt8[np.ndarray, "height width 3"], short_side: int, medium: Path
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """A whole frame at the network's scale.

    Raises:
        MediaError: It is narrower than 1 : 16.
    """
    height, width, _ = picture.shape
    if max(height, width) > MAX_SIDE_RATIO * min(height, width):
        raise MediaError(
            medium, RefusalReason.TOO_LARGE, f"{width} x {height} pixels are narrower than 1 : {MAX_SIDE_RATIO}"
        )
    return resize_short_side(picture, short_side)


def repeat_still_image(
    path: Path, picture: UInt8[np.ndarray, "height width 3"] | None = None
) -> Generator[UInt8[np.ndarray, "height width 3"], None, None]:
    """Repeats an image (that of the file by default) for as long as frames are requested."""
    yield from repeat(read_image(path) if picture is None else picture)


def read_hop_frames(path: Path, hop_seconds: float) -> Generator[UInt8[np.ndarray, "height width 3"], None, None]:
    """The frames of a video at the middle of each hop."""
    for number, (_, picture) in enumerate(iterate_frames(path, 2 / hop_seconds)):
        if number % 2:
            yield picture


def cut_audio_windows(
    blocks: Iterable[Float[np.ndarray, " _"]], begins: Iterable[int], window: int
) -> Iterator[Float[np.ndarray, " window"]]:
    """The windows that begin at given samples, in ascending order, of the audio whose consecutive blocks are passed.

    Windows at the end are shifted back into the audio, as long as their middles lie in it. Audio of one window's length
    may lack a twentieth of it.
    """
    source, held, first, ended = iter(blocks), np.zeros(0, np.float32), 0, False
    for wanted in begins:
        while not ended and first + len(held) < wanted + window:
            block = next(source, None)
            ended = block is None
            if block is not None:
                held = np.concatenate([held, block])
            dropped = max(0, min(wanted - window - first, len(held)))
            held, first = held[dropped:], first + dropped
        end = first + len(held)
        if wanted + window // 2 >= end or end < window * (1 - MAX_MISSING_FRACTION):
            return
        begin = max(0, min(wanted, end - window)) - first
        piece = held[begin : begin + window]
        yield np.pad(piece, (0, window - len(piece)))


def predict_moments(
    model: L3Net, some: Sequence[tuple[float, Float[np.ndarray, " samples"], UInt8[np.ndarray, "_ _ 3"]]]
) -> list[MatchMoment]:
    """The predictions for some moments, each with time, audio and frame. Frames of one size are computed in one batch.
    The prediction of a silent moment is None, for silence is not evidence of match or mismatch.
    """
    if len({frame.shape for _, _, frame in some}) > 1:
        return [moment for one in some for moment in predict_moments(model, [one])]
    device = next(model.parameters()).device
    loud = [i for i, (_, sound, _) in enumerate(some) if np.abs(sound).max() >= MAX_SILENT_PEAK]
    found: dict[int, tuple[float, Float32[np.ndarray, "_ _"]]] = {}
    if loud:
        image = torch.from_numpy(np.stack([some[i][2] for i in loud])).permute(0, 3, 1, 2).to(device)
        heard = torch.from_numpy(np.stack([some[i][1] for i in loud])).to(device)
        source = predict_by_position(model, image, heard)
        together, places = source.together.float().cpu().tolist(), source.places.float().cpu().numpy()
        found = dict(zip(loud, zip(together, places, strict=True), strict=True))
    moments = []
    for i, (seconds, _, frame) in enumerate(some):
        if i not in found:
            moments.append(MatchMoment(seconds, None, None, None, None, encode_jpeg(frame)))
            continue
        probability, of_places = found[i]
        height, width, _ = frame.shape
        x, y = find_map_peak(torch.from_numpy(of_places), (height, width))
        placed = (probability, round(x / width, 4), round(y / height, 4), of_places)
        moments.append(MatchMoment(seconds, *placed, encode_jpeg(frame)))
    return moments


def format_match_title(found: MatchResult) -> str:
    """The names of the files that were matched."""
    own = found.sound == found.medium
    return f"{found.medium.name} and {'its own audio' if own else found.sound.name}"


def print_match(found: MatchResult) -> None:
    """Prints the mean, and a table of at most 20 equally spaced moments."""
    moments = found.moments
    shown = np.unique(np.linspace(0, len(moments) - 1, min(MAX_TABLE_ROWS, len(moments))).round().astype(int)).tolist()
    silent = sum(moment.together is None for moment in moments)
    about = f"{len(shown)} of {len(moments)} moments; {silent} silent; places as fractions from the upper left"
    table = Table("second", "probability of correspondence", "strongest at x, y", caption=about)
    for place in shown:
        moment = moments[place]
        cells = (
            ("silent", "") if moment.together is None else (f"{moment.together:.3f}", f"{moment.x:.2f}, {moment.y:.2f}")
        )
        table.add_row(f"{moment.seconds:.2f}", *cells)
    print_line(f"{format_match_title(found)}: probability of correspondence {found.together:.3f}")
    table.show()
