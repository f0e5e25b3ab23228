"""A contact sheet of the clips in the shards. Each row shows the frames and the audio of a clip."""

import io
from pathlib import Path

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from comodal.console import escape_plot_text
from comodal.data.shards.shard_reader import ShardReader
from comodal.files import write_bytes_atomically
from comodal.media.audio import decode_flac
from comodal.media.image import decode_jpeg, resize_short_side

THUMBNAIL_PIXELS = 120  # short side of a frame on the sheet, in pixels


def draw_contact_sheet(shards: Path, out: Path, clips: int = 12, frames: int = 5, start: int = 0) -> None:
    """Draws clips of a split: equally spaced frames, the waveform and the spectrogram, with key and label.

    Args:
        shards: folder of one split, as `comodal prepare` wrote it.
        out: the image file to write, .png or .jpg.
        clips: number of clips, equally spaced from `start` on.
        frames: number of frames per clip.
        start: index of the first clip.

    Raises:
        DataError: there are no shards, or they are damaged.
    """
    if clips < 1 or frames < 1:
        raise ValueError(f"clips ({clips}) and frames ({frames}) must be at least 1")
    reader = ShardReader(shards)
    if not 0 <= start < len(reader):
        raise ValueError(f"start ({start}) is not one of {len(reader)} clips")
    clip_indices = np.unique(np.linspace(start, len(reader) - 1, min(clips, len(reader) - start)).round().astype(int))
    widths = [1.0] * frames + [2.2, 2.2]
    figure = Figure(figsize=(1.6 * sum(widths), 1.5 * len(clip_indices)), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(clip_indices), frames + 2, squeeze=False, width_ratios=widths)
    for row, clip in zip(grid, clip_indices, strict=True):
        draw_clip(row, reader, int(clip))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png" if out.suffix == ".png" else "jpg", dpi=90)
    write_bytes_atomically(out, buffer.getvalue())


def draw_clip(row: np.ndarray, shards: ShardReader, clip: int) -> None:
    """One clip in a row of axes: frames, waveform, spectrogram."""
    record = shards.read_record(clip)
    frame_axes = row[:-2]
    for axes in frame_axes:
        axes.axis("off")
    frame_indices = (
        np.linspace(0, len(record["frames"]) - 1, min(len(frame_axes), len(record["frames"]))).round().astype(int)
    )
    height, width = 0, 0
    for axes, frame_index in zip(frame_axes, frame_indices, strict=False):
        frame = decode_jpeg(shards.read_member(clip, record["frames"][frame_index]))
        height, width, _ = frame.shape
        axes.imshow(resize_short_side(frame, THUMBNAIL_PIXELS))
        axes.set_title(f"{record['frame_seconds'][frame_index]:.2f} s", fontsize=7)
    label = record.get("label", "")
    waveform, sample_rate = decode_flac(shards.read_member(clip, "flac"))
    waveform_axes, spectrogram_axes = row[-2:]
    draw_waveform(waveform_axes, waveform, sample_rate)
    title = f"{record['key'][:48]}\n{label}  {record['seconds']:.2f} s, {width} x {height}"
    waveform_axes.set_title(escape_plot_text(title), fontsize=7)
    draw_spectrogram(spectrogram_axes, waveform, sample_rate)


def draw_waveform(axes: Axes, waveform: Float[np.ndarray, " samples"], sample_rate: int) -> None:
    """The minimum and maximum sample of each of 400 segments."""
    segments = np.array_split(waveform, min(400, len(waveform)))
    seconds = np.linspace(0.0, len(waveform) / sample_rate, len(segments))
    axes.fill_between(seconds, [p.min() for p in segments], [p.max() for p in segments], color="#3b6ea5", linewidth=0.3)
    axes.set_ylim(-1.0, 1.0)
    axes.tick_params(labelsize=6)


def draw_spectrogram(axes: Axes, waveform: Float[np.ndarray, " samples"], sample_rate: int) -> None:
    """Decibels from the maximum down to -80, low frequencies at the bottom."""
    window = 1024
    padded = np.pad(waveform, (0, max(0, window - len(waveform))))
    frames = np.lib.stride_tricks.sliding_window_view(padded, window)[:: max(1, len(padded) // 400)]
    power = np.abs(np.fft.rfft(frames * np.hanning(window).astype(np.float32), axis=1)) ** 2
    level = 10.0 * np.log10(np.maximum(power, 1e-10))
    extent = (0.0, len(padded) / sample_rate, 0.0, sample_rate / 2000.0)
    relative_level = (level - level.max()).T
    axes.imshow(relative_level, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=-80.0, vmax=0.0)
    axes.set_ylabel("kHz", fontsize=6)
    axes.tick_params(labelsize=6)
