"""Mel filter banks: triangular filters of equal area, evenly spaced in mel (HTK book, section 5.4; Slaney's Auditory
Toolbox).

Both scales and the area normalization are those of librosa's `filters.mel(norm="slaney")`, which kapre and OpenL3 use.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

MelScale = Literal["htk", "slaney"]

# Slaney's scale: linear below 1 kHz (3 mel per 200 Hz), then 27 steps to a factor of 6.4.
SLANEY_MEL_PER_HERTZ = 3 / 200
SLANEY_BREAK_HERTZ = 1000.0
SLANEY_BREAK_MEL = SLANEY_BREAK_HERTZ * SLANEY_MEL_PER_HERTZ
SLANEY_LOG_STEP = torch.log(torch.tensor(6.4, dtype=torch.float64)) / 27


def hertz_to_mel(hertz: Float[Tensor, "..."], scale: MelScale) -> Float[Tensor, "..."]:
    """Converts frequencies from Hz to mel."""
    if scale == "htk":
        return 2595 * torch.log10(1 + hertz / 700)
    above = SLANEY_BREAK_MEL + torch.log(hertz.clamp(min=SLANEY_BREAK_HERTZ) / SLANEY_BREAK_HERTZ) / SLANEY_LOG_STEP
    return torch.where(hertz < SLANEY_BREAK_HERTZ, hertz * SLANEY_MEL_PER_HERTZ, above)


def mel_to_hertz(mel: Float[Tensor, "..."], scale: MelScale) -> Float[Tensor, "..."]:
    """Converts frequencies from mel to Hz."""
    if scale == "htk":
        return 700 * (10 ** (mel / 2595) - 1)
    above = SLANEY_BREAK_HERTZ * torch.exp((mel - SLANEY_BREAK_MEL) * SLANEY_LOG_STEP)
    return torch.where(mel < SLANEY_BREAK_MEL, mel / SLANEY_MEL_PER_HERTZ, above)


def make_mel_filter_bank(sample_rate: int, n_fft: int, bands: int, scale: MelScale) -> Float[Tensor, "bands bins"]:
    """Returns triangular filters over FFT bins from 0 Hz to half the sample rate, each of area 1 (per Hz).

    Narrow filters may fall between two bins and stay empty: with n_fft 2048 at 48 kHz, 2 of 256 HTK bands do.
    """
    bins = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64, device="cpu")
    ends = hertz_to_mel(torch.tensor([0, sample_rate / 2], dtype=torch.float64, device="cpu"), scale)
    steps = torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64, device="cpu")
    corners = mel_to_hertz(steps, scale)
    low, center, high = (corners[i : i + bands].unsqueeze(1) for i in range(3))
    rising, falling = (bins - low) / (center - low), (high - bins) / (high - center)
    return (torch.minimum(rising, falling).clamp(min=0) * 2 / (high - low)).float()
