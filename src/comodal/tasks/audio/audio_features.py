"""The features of labeled audio for L3-Net's linear probe (section 4.2), and those of its three baselines.

Each clip is cut into equally spaced windows of one second. The systems are:
- the trained network: the map of its last convolution, max-pooled (6144 features in the paper's network);
- an untrained network of the same shape, whose batch norms are calibrated on unlabeled training clips;
- the raw spectrogram that the network takes as input, averaged to 32 x 32;
- log-mel statistics.
The raw spectrogram is weak by design: a linear layer on it is not invariant to shifts in time. Log-mel statistics are,
and are the strongest baseline. The files are read in one pass, and a waveform is freed once it is embedded.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from comodal.errors import DataError, MediaError, wrap_item_errors
from comodal.hardware import Compute
from comodal.media.audio import read_audio
from comodal.media.storage.refused_formats import RefusalReason
from comodal.models.calibration import calibrate_batch_norms
from comodal.models.checkpoint import make_untrained_copy
from comodal.models.l3net.fused_vgg import FastL3Net, make_fast_l3net
from comodal.models.l3net.l3net import L3Net, load_l3net
from comodal.models.l3net.spectrogram import Spectrogram, SpectrogramConfig
from comodal.progress import track_progress
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.evaluation.unreadable_files import mask_readable, try_read

BASELINE_SPECTROGRAM = SpectrogramConfig(
    window_samples=2048, hop_samples=480, n_fft=2048, mel_bands=128, mel_scale="slaney", floor=1e-2
)
WINDOWS_PER_SECOND = 2  # the paper: ten of five seconds, sixty of thirty
RAW_SPECTROGRAM_SIDE = 32  # side of the averaged raw spectrogram; raw pixels use the same
MAX_CALIBRATION_FILES = 256  # clips; the center window of each


class LabeledAudioFile(NamedTuple):
    """An audio file, its name in the results, and its class; None where the class is unknown."""

    path: Path
    name: str
    category: str | None


class AudioFeatures(NamedTuple):
    """The features of each system for every clip and window, the durations, and a description of the untrained control.

    Clips that cannot be read are in `problems`; their rows are undefined.
    """

    systems: dict[str, Float[Tensor, "sounds _ _"]]
    seconds: Float[np.ndarray, " sounds"]
    window_seconds: float
    windows: int
    control: str = ""
    problems: Mapping[int, MediaError] = {}

    def without_problems(self) -> "AudioFeatures":
        """The features of the clips that can be read."""
        if not self.problems:
            return self
        kept = mask_readable(len(self.seconds), self.problems)
        systems = {name: rows[torch.from_numpy(kept)] for name, rows in self.systems.items()}
        return self._replace(systems=systems, seconds=self.seconds[kept], problems={})


def cut_windows(sound: Float[np.ndarray, " samples"], count: int, length: int) -> Float[np.ndarray, "count length"]:
    """Equally spaced windows, the first at the beginning, the last at the end."""
    starts = np.linspace(0, len(sound) - length, count).round().astype(int)
    return np.stack([sound[start : start + length] for start in starts])


def read_all_samples(sound: LabeledAudioFile, sample_rate: int) -> Float[np.ndarray, " samples"]:
    """The waveform of a file.

    Raises:
        MediaError: The file cannot be read, or holds no samples.
    """
    with wrap_item_errors(sound.path):
        samples = read_audio(sound.path, sample_rate)
    if not len(samples):
        raise MediaError(sound.path, RefusalReason.NO_SOUND, "not a single sample")
    return samples


def compute_spectrogram_statistics(
    sound: Float[Tensor, " samples"], front_end: Spectrogram
) -> Float[Tensor, "1 features"]:
    """For each band of the log-mel spectrogram of a clip: the mean, the std, and the std of its first difference.

    The strongest raw features of those compared. Accuracy on ESC-10 with logistic regression: 0.84; without the
    difference 0.80, with a floor of 1e-4 instead of 1e-2 0.78, over each second separately 0.75.
    """
    bands = front_end(sound[None])[0, 0]
    return torch.cat([bands.mean(-1), bands.std(-1), bands.diff(dim=-1).std(-1)])[None]


def flatten_spectrograms(spectrogram: Float[Tensor, "windows 1 bands frames"]) -> Float[Tensor, "windows features"]:
    """Each window's spectrogram averaged to 32 x 32, as one row."""
    rows, columns = spectrogram.shape[2:]
    return F.adaptive_avg_pool2d(
        spectrogram, (min(RAW_SPECTROGRAM_SIDE, rows), min(RAW_SPECTROGRAM_SIDE, columns))
    ).flatten(1)


def build_untrained_audio_control(
    trained: L3Net, unlabeled: Sequence[LabeledAudioFile], seed: int, workers: int
) -> tuple[L3Net, int]:
    """A network of the same shape with initial weights, and the number of clips on which the batch norms of its audio
    tower were calibrated.

    Raises:
        DataError: No clip can be read.
    """
    rate, length = trained.config.sample_rate, round(trained.config.sound_seconds * trained.config.sample_rate)
    step = max(1, len(unlabeled) // MAX_CALIBRATION_FILES)
    some = unlabeled[::step][:MAX_CALIBRATION_FILES]

    def middle(sound: LabeledAudioFile) -> Float[np.ndarray, " samples"]:
        samples = pad_with_silence(read_all_samples(sound, rate), length)
        start = (len(samples) - length) // 2
        return samples[start : start + length]

    heard = joblib.Parallel(workers, prefer="threads")(joblib.delayed(try_read)(middle, sound) for sound in some)
    windows = [found for found in heard if not isinstance(found, MediaError)]
    if not windows:
        raise DataError(f"none of {len(heard)} sounds to fit can be read; the first: {heard[0]}")
    control = make_untrained_copy(trained, seed)
    calibrate_batch_norms(control.sound_tower, control.sound_map, torch.from_numpy(np.stack(windows)))
    return control, len(windows)


def pad_with_silence(samples: Float[np.ndarray, " samples"], length: int) -> Float[np.ndarray, " pad_with_silence"]:
    """Pads a waveform with silence at its end to at least this length."""
    return np.pad(samples, (0, max(0, length - len(samples))))


def extract_audio_features(
    model: Path,
    sounds: Sequence[LabeledAudioFile],
    unlabeled: Sequence[LabeledAudioFile],
    windows: int | None,
    seed: int,
    workers: int,
    compute: Compute,
) -> AudioFeatures:
    """Computes the features of every system in one pass over the files.

    Args:
        model: Run or model folder.
        sounds: The clips to embed.
        unlabeled: Training clips on which the batch norms of the untrained network are calibrated.
        windows: Number of windows of each clip; None takes two for each second of the first clip.
        seed: Seed of the untrained network's weights.
        workers: Threads that read files.
        compute: Device and precision.

    Raises:
        DataError: No clip for the calibration can be read.
    """
    trained = load_l3net(model)
    untrained, calibrated_on = build_untrained_audio_control(trained, unlabeled, seed, workers)
    compared = {"trained": trained, "untrained": untrained}
    networks = {name: make_fast_l3net(network.to(compute.device), compute.dtype) for name, network in compared.items()}
    rate, length = trained.config.sample_rate, round(trained.config.sound_seconds * trained.config.sample_rate)
    plain = Spectrogram(replace(BASELINE_SPECTROGRAM, sample_rate=rate))
    systems: dict[str, Tensor] = {}
    seconds, problems = np.zeros(len(sounds)), dict[int, MediaError]()
    held: dict[int, np.ndarray] = {}  # clips that are embedded in one batch
    parallel = joblib.Parallel(n_jobs=workers, prefer="threads", return_as="generator")  # reads a few clips ahead
    read = partial(read_all_samples, sample_rate=rate)
    heard = parallel(joblib.delayed(try_read)(read, sound) for sound in sounds)
    for place, samples in enumerate(track_progress(heard, "embedding sounds", total=len(sounds))):
        if isinstance(samples, MediaError):
            problems[place] = samples
        else:
            seconds[place] = len(samples) / rate
            windows = windows or max(1, round(WINDOWS_PER_SECOND * seconds[place]))
            held[place] = pad_with_silence(samples, length)
        last = place + 1 == len(sounds)
        if windows is None or not held or (len(held) < compute.batch_size // windows and not last):
            continue
        batch = np.concatenate([cut_windows(one, windows, length) for one in held.values()])
        found = embed_windows(torch.from_numpy(batch).to(compute.device), networks, trained, len(held))
        found["log_mel"] = torch.stack(
            [compute_spectrogram_statistics(torch.from_numpy(one), plain) for one in held.values()]
        )
        for name, several in found.items():  # filled in place: a second copy would take as much memory again
            for number, rows in zip(held, several, strict=True):
                check_finite_scores(rows.numpy(), f"{sounds[number].path}, features of the {name} system")
            systems.setdefault(name, several.new_empty(len(sounds), *several.shape[1:]))[list(held)] = several
        held = {}
    control = f"batch norms calibrated on {calibrated_on} sounds of the training part, without labels"
    return AudioFeatures(systems, seconds, trained.config.sound_seconds, windows or 0, control, problems)


def embed_windows(
    batch: Float[Tensor, "windows samples"], networks: Mapping[str, FastL3Net], trained: L3Net, sounds: int
) -> dict[str, Float[Tensor, "sounds _ _"]]:
    """The features of the windows of several clips, from each network and from the raw spectrogram."""
    found = {name: network.embed_sound(batch).cpu() for name, network in networks.items()}
    found["spectrogram"] = flatten_spectrograms(trained.spectrogram(batch)).cpu()
    return {name: rows.unflatten(0, (sounds, -1)) for name, rows in found.items()}
