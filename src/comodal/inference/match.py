"""`comodal match`: whether an image or a video corresponds to audio, when, and where in the image.

A window is a second of audio with the frame in its middle. The whole frame is scored at the scale of training (short
side 8/7 of the model's image size). The prediction and its localization map therefore use the same image. Memory holds
one frame and one second (on a GPU 64 of each), and for each window its prediction, its map and a JPEG.
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
from comodal.analysis.pages.match_page import MatchWindow, draw_match_windows, write_match_page
from comodal.console import Table, print_json, print_line
from comodal.errors import CheckpointError, DataError, MediaError, check_number
from comodal.files import write_bytes_atomically
from comodal.hardware import DeviceName, Precision, resolve_compute
from comodal.media.audio import resample_audio, stream_audio
from comodal.media.image import encode_jpeg, read_image, resize_short_side
from comodal.media.storage.refused_formats import RefusalReason
from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from comodal.media.user_inputs import to_rgb_array, to_waveform
from comodal.media.video import MAX_SILENT_PEAK, iterate_frames
from comodal.models.ave_net.ave_net import AVENet
from comodal.models.checkpoint import load_model
from comodal.models.l3net.l3net import L3Net

MAX_SIDE_RATIO = 16  # maximum aspect ratio of an image, as of a video
GPU_WINDOWS = 64  # windows on a GPU; a CPU takes one at a time
MAX_MISSING_FRACTION = 0.05  # of the shortest audio: encoders cut off a few milliseconds
MAX_TABLE_ROWS = 20  # of the printed table
DRAWING_SUFFIXES = {".png", ".html"}


@dataclass(frozen=True)
class MatchResult:
    """The prediction for each window; `probability` is the mean over those that are not silent."""

    medium: Path
    audio: Path
    windows: tuple[MatchWindow, ...]

    @property
    def probability(self) -> float:
        """Probability that image and audio correspond, from 0 to 1."""
        return float(np.mean([window.probability for window in self.windows if window.probability is not None]))

    def as_json(self) -> dict[str, Any]:
        """Values for JSON; x and y are fractions of the upright image, from its upper left."""
        windows = [
            {"seconds": round(m.seconds, 3), "probability": m.probability, "x": m.x, "y": m.y} for m in self.windows
        ]
        return {
            "medium": str(self.medium),
            "audio": str(self.audio),
            "probability": self.probability,
            "windows": windows,
        }


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
        model: Run folder or model folder of an L3-Net or an AVE-Net.
        hop_seconds: Time between predictions; each takes one second of audio (or the model's window).
        json: Print JSON instead of a table.
        out: An image (.png) or a page (.html) to write: predictions over time, and frames with localization maps.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Returns:
        The predictions; `.probability` is their mean without silent windows.

    Raises:
        MediaError: A file cannot be read, has no audio or video stream, or is silent or too short.
        DataError: An image is given without audio, or more than two files are given.

    Examples:
        comodal match video.mp4 --model RUN
        comodal match image.jpg bark.wav --model RUN --out localization.png
        comodal match video.mp4 other.mp3 --model RUN --hop-seconds 0.5 --json
    """
    if out is not None and out.suffix.lower() not in DRAWING_SUFFIXES:
        raise ValueError(f"--out {out}: give a .png or a .html file")
    if len(files) > 2:
        raise DataError(f"{len(files)} files; match takes an image or a video, and audio")
    network, compute = load_match_model(model), resolve_compute(device, precision)
    with compute.autocast():
        result = match_files(network.to(compute.device), files[0], files[1] if len(files) > 1 else None, hop_seconds)
    if json:
        print_json(result.as_json())
    else:
        print_match(result)
    if out is not None and out.suffix.lower() == ".html":
        write_match_page(out, format_match_title(result), result.probability, result.windows)
    elif out is not None:
        drawing = io.BytesIO()
        draw_match_windows(format_match_title(result), result.windows).savefig(drawing, format="png", dpi=110)
        write_bytes_atomically(out, drawing.getvalue())
    return result


def load_match_model(path: Path) -> L3Net | AVENet:
    """Loads an L3-Net or an AVE-Net, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, L3Net | AVENet):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs an L3Net or an AVENet")
    return model


def match_files(
    model: L3Net | AVENet,
    medium: Any,
    audio: Any = None,
    hop_seconds: float = 1.0,
    sample_rate: int | float | None = None,
) -> MatchResult:
    """Predictions for an image or a video with audio, or for a video with its own audio.

    Args:
        model: In evaluation mode.
        medium: The path of an image or a video; or a PIL image, an array (height, width, 3) or a tensor (3, height,
            width) of bytes.
        audio: The path of an audio file or a video; None for the video's own audio; or an array (samples,) or (samples,
            channels), or a tensor (samples,) or (channels, samples).
        hop_seconds: Time between predictions.
        sample_rate: Of audio in memory.

    Raises:
        MediaError: A file cannot be read, has no audio or video stream, or is silent or too short.
        DataError: An image is given without audio.
        TypeError: The input is of another type.
    """
    check_number("hop_seconds", hop_seconds, 0.01, 3600)
    image = None if isinstance(medium, str | Path) else to_rgb_array(medium)
    medium = Path("image in memory") if image is not None else Path(medium)
    if image is None and medium.suffix.lower() in AUDIO_SUFFIXES:
        raise DataError(f"{medium}: an audio file; give the image or video first, then the audio")
    is_still = image is not None or medium.suffix.lower() in IMAGE_SUFFIXES
    if is_still and audio is None:
        raise DataError(f"{medium}: an image has no audio; give an audio file as the second file")
    model_sample_rate = model.config.sample_rate
    if audio is None or isinstance(audio, str | Path):
        audio_path = medium if audio is None else Path(audio)
        blocks = stream_audio(audio_path, model_sample_rate, block_seconds=1.0)
    else:
        samples, audio_sample_rate = to_waveform(audio, sample_rate)
        audio_path, blocks = (
            Path("audio in memory"),
            iter([resample_audio(samples, round(audio_sample_rate), model_sample_rate)]),
        )
    frame_source = repeat_still_image(medium, image) if is_still else read_hop_frames(medium, hop_seconds)
    try:
        with closing(frame_source) as frames:
            windows = list(score_windows(model, medium, frames, blocks, hop_seconds))
    except MediaError as error:
        if audio is None and error.reason == RefusalReason.NO_AUDIO_STREAM:
            raise MediaError(medium, error.reason, f"{error.detail}; give an audio file as the second file") from None
        raise
    if not windows:
        min_duration = f"{max(model.config.audio_seconds, hop_seconds / 2):g} s"
        raise MediaError(
            audio_path, RefusalReason.TOO_SHORT, f"a prediction needs {min_duration} of audio, and a frame at that time"
        )
    if all(window.probability is None for window in windows):
        raise MediaError(audio_path, RefusalReason.SILENT, "the audio never exceeds -60 dB, so it cannot be matched")
    return MatchResult(medium, audio_path, tuple(windows))


def score_windows(
    model: L3Net | AVENet,
    medium: Path,
    frames: Iterable[UInt8[np.ndarray, "_ _ 3"]],
    blocks: Iterable[Float[np.ndarray, " _"]],
    hop_seconds: float,
) -> Iterator[MatchWindow]:
    """Predictions for the windows at the middle of each hop, until audio or video ends."""
    sample_rate = model.config.sample_rate
    length = round(model.config.audio_seconds * sample_rate)
    starts = (max(0, round(hop_seconds * (index + 0.5) * sample_rate) - length // 2) for index in count())
    middles = (hop_seconds * (index + 0.5) for index in count())
    size = round(model.config.image_size * 8 / 7)
    resized = (resize_frame(frame, size, medium) for frame in frames)
    inputs = zip(middles, cut_audio_windows(blocks, starts, length), resized, strict=False)
    batch_size = 1 if next(model.parameters()).device.type == "cpu" else GPU_WINDOWS
    while batch := list(islice(inputs, batch_size)):
        yield from predict_windows(model, batch)


def resize_frame(
    frame: UInt8[np.ndarray, "height width 3"], short_side: int, medium: Path
) -> UInt8[np.ndarray, "new_height new_width 3"]:
    """A whole frame at the network's scale.

    Raises:
        MediaError: It is narrower than 1 : 16.
    """
    height, width, _ = frame.shape
    if max(height, width) > MAX_SIDE_RATIO * min(height, width):
        raise MediaError(
            medium, RefusalReason.TOO_LARGE, f"{width} x {height} pixels are narrower than 1 : {MAX_SIDE_RATIO}"
        )
    return resize_short_side(frame, short_side)


def repeat_still_image(
    path: Path, image: UInt8[np.ndarray, "height width 3"] | None = None
) -> Generator[UInt8[np.ndarray, "height width 3"], None, None]:
    """Repeats an image (that of the file by default) for as long as frames are requested."""
    yield from repeat(read_image(path) if image is None else image)


def read_hop_frames(path: Path, hop_seconds: float) -> Generator[UInt8[np.ndarray, "height width 3"], None, None]:
    """The frames of a video at the middle of each hop."""
    for index, (_, frame) in enumerate(iterate_frames(path, 2 / hop_seconds)):
        if index % 2:
            yield frame


def cut_audio_windows(
    blocks: Iterable[Float[np.ndarray, " _"]], starts: Iterable[int], window: int
) -> Iterator[Float[np.ndarray, " window"]]:
    """The windows that begin at given samples, in ascending order, of the audio whose consecutive blocks are passed.

    Windows at the end are shifted back into the audio, as long as their middles lie in it. Audio of one window's length
    may lack a twentieth of it.
    """
    source, samples, first_sample, is_ended = iter(blocks), np.zeros(0, np.float32), 0, False
    for start in starts:
        while not is_ended and first_sample + len(samples) < start + window:
            block = next(source, None)
            is_ended = block is None
            if block is not None:
                samples = np.concatenate([samples, block])
            dropped = max(0, min(start - window - first_sample, len(samples)))
            samples, first_sample = samples[dropped:], first_sample + dropped
        end = first_sample + len(samples)
        if start + window // 2 >= end or end < window * (1 - MAX_MISSING_FRACTION):
            return
        offset = max(0, min(start, end - window)) - first_sample
        samples_cut = samples[offset : offset + window]
        yield np.pad(samples_cut, (0, window - len(samples_cut)))


def predict_windows(
    model: L3Net | AVENet, inputs: Sequence[tuple[float, Float[np.ndarray, " samples"], UInt8[np.ndarray, "_ _ 3"]]]
) -> list[MatchWindow]:
    """The predictions for some windows, each with time, audio and frame. Frames of one size are computed in one batch.
    The prediction of a silent window is None, for silence is not evidence of match or mismatch.
    """
    if len({frame.shape for _, _, frame in inputs}) > 1:
        return [window for single in inputs for window in predict_windows(model, [single])]
    device = next(model.parameters()).device
    loud = [i for i, (_, waveform, _) in enumerate(inputs) if np.abs(waveform).max() >= MAX_SILENT_PEAK]
    predictions: dict[int, tuple[float, Float32[np.ndarray, "_ _"]]] = {}
    if loud:
        image = torch.from_numpy(np.stack([inputs[i][2] for i in loud])).permute(0, 3, 1, 2).to(device)
        waveforms = torch.from_numpy(np.stack([inputs[i][1] for i in loud])).to(device)
        source = predict_by_position(model, image, waveforms)
        probabilities, maps = source.probability.float().cpu().tolist(), source.position_margins.float().cpu().numpy()
        predictions = dict(zip(loud, zip(probabilities, maps, strict=True), strict=True))
    windows = []
    for i, (seconds, _, frame) in enumerate(inputs):
        if i not in predictions:
            windows.append(MatchWindow(seconds, None, None, None, None, encode_jpeg(frame)))
            continue
        probability, position_map = predictions[i]
        height, width, _ = frame.shape
        x, y = find_map_peak(torch.from_numpy(position_map), (height, width))
        located = (probability, round(x / width, 4), round(y / height, 4), position_map)
        windows.append(MatchWindow(seconds, *located, encode_jpeg(frame)))
    return windows


def format_match_title(result: MatchResult) -> str:
    """The names of the files that were matched."""
    own = result.audio == result.medium
    return f"{result.medium.name} and {'its own audio' if own else result.audio.name}"


def print_match(result: MatchResult) -> None:
    """Prints the mean, and a table of at most 20 equally spaced windows."""
    windows = result.windows
    indices = np.unique(
        np.linspace(0, len(windows) - 1, min(MAX_TABLE_ROWS, len(windows))).round().astype(int)
    ).tolist()
    silent = sum(window.probability is None for window in windows)
    about = f"{len(indices)} of {len(windows)} windows; {silent} silent; positions as fractions from the upper left"
    table = Table("second", "probability of correspondence", "strongest at x, y", caption=about)
    for index in indices:
        window = windows[index]
        cells = (
            ("silent", "")
            if window.probability is None
            else (f"{window.probability:.3f}", f"{window.x:.2f}, {window.y:.2f}")
        )
        table.add_row(f"{window.seconds:.2f}", *cells)
    print_line(f"{format_match_title(result)}: probability of correspondence {result.probability:.3f}")
    table.show()
