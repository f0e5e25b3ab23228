"""Log-spectrogram of a waveform, inside the model: the paper's (L3-Net, section 3.1) and those of its successors.

The successors are l3embedding's `cnn_L3_orig` and the three frontends of OpenL3: kapre 0.1.4, with which its weights
were trained, and kapre 0.3 and librosa, with which OpenL3 runs them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import check_number
from comodal.models.l3net.mel_filters import MelScale, make_mel_filter_bank

Representation = Literal["linear", "mel128", "mel256"]
Frontend = Literal["kapre014", "kapre03", "librosa"]

MIN_DECIBELS = -80.0  # kapre 0.1.4, backend_keras.py, amplitude_to_decibel: dynamic_range
MAX_SAMPLE_RATE = 768_000
MIN_FLOOR = 1e-30  # of the logarithm, far above the smallest float32
MAX_FFT = 1 << 14  # a third of a second at 48 kHz
MIN_MAGNITUDE = 1e-10  # the same, amin


@dataclass(frozen=True)
class SpectrogramConfig:
    """The defaults are the paper's: 257 bands by 199 frames of one second at 48 kHz.

    Windows are 10 ms with half overlap (section 3.1). The paper does not publish the window function; we use a periodic
    Hann window, as l3embedding does. Nor does it publish the floor of the logarithm. We use 1e-4, the rounding error of
    16-bit audio in a bin (2**-15 / sqrt(12) times the window's norm, 13.4), so that silence and rounding noise have the
    same value.
    """

    sample_rate: int = 48_000
    window_samples: int = 480
    hop_samples: int = 240
    n_fft: int = 512
    zeros_before: int = 0
    zeros_after: int = 0
    mel_bands: int = 0  # 0: no mel filters, all n_fft // 2 + 1 bins
    mel_scale: MelScale = "htk"
    mel_of: Literal["power", "magnitude"] = "power"
    scale: Literal["log", "clamped_log", "decibels", "log_power"] = "log"
    floor: float = 1e-4

    def __post_init__(self) -> None:
        check_number("sample_rate", self.sample_rate, 1, MAX_SAMPLE_RATE)
        check_number("n_fft", self.n_fft, 1, MAX_FFT)
        check_number("mel_bands", self.mel_bands, 0, MAX_FFT)
        for name in ("zeros_before", "zeros_after"):
            check_number(name, getattr(self, name), 0, MAX_FFT)
        check_number("hop_samples", self.hop_samples, 1, MAX_SAMPLE_RATE)
        check_number("floor", self.floor, MIN_FLOOR, 1)
        check_number("window_samples", self.window_samples, 1, MAX_FFT)
        if self.window_samples > self.n_fft:
            raise ValueError(f"window_samples ({self.window_samples}) must not exceed n_fft ({self.n_fft})")


PAPER_SPECTROGRAM_CONFIG = SpectrogramConfig()
L3EMBEDDING_SPECTROGRAM_CONFIG = SpectrogramConfig(
    window_samples=512, hop_samples=242, scale="clamped_log", floor=1e-12
)

# For small models: 64 x 32 of one second. The floor is 16-bit rounding again, in bands of area 1 (1e-4 / 23 Hz).
SMALL_SPECTROGRAM_CONFIG = SpectrogramConfig(
    window_samples=2048, hop_samples=1440, n_fft=2048, mel_bands=64, mel_of="magnitude", floor=1e-5
)


def make_openl3_spectrogram_config(representation: Representation, frontend: Frontend) -> SpectrogramConfig:
    """OpenL3's spectrograms; its published weights were trained with `kapre014`.

    The linear spectrogram is the same in all three frontends. The mel spectrograms differ by up to 80 dB in places,
    because of the zero padding, the mel scale, and whether the filters sum power or magnitude. librosa pads with zeros
    from 0.10 on.
    """
    if representation == "linear":
        return SpectrogramConfig(window_samples=512, hop_samples=242, scale="decibels")
    before, after = {"kapre014": (982, 982), "kapre03": (0, 1964), "librosa": (1024, 1024)}[frontend]
    return SpectrogramConfig(
        window_samples=2048,
        hop_samples=242,
        n_fft=2048,
        zeros_before=before,
        zeros_after=after,
        mel_bands={"mel128": 128, "mel256": 256}[representation],
        mel_scale="htk" if frontend == "kapre014" else "slaney",
        mel_of="power" if frontend == "kapre014" else "magnitude",
        scale="decibels",
    )


def magnitude_to_decibels(magnitude: Float[Tensor, "batch bands frames"]) -> Float[Tensor, "batch bands frames"]:
    """10 log10 of the magnitude (kapre uses 10, not 20), relative to the window's maximum, at least -80.

    A window of zeros becomes 0 dB everywhere, which looks like the loudest white noise, in every version of OpenL3.
    Mask digitally silent windows before embedding.
    """
    level = 10 * torch.log10(magnitude.clamp(min=MIN_MAGNITUDE))
    return (level - level.amax((-2, -1), keepdim=True)).clamp(min=MIN_DECIBELS)


class Spectrogram(nn.Module):
    """A fixed frontend without parameters; computed in the waveform's own precision, also under autocast.

    `torch.stft` requires whole windows of n_fft samples and would give 198 frames with the paper's settings.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, config: SpectrogramConfig) -> None:
        super().__init__()
        self.config = config
        # On the meta device this would import `torch._dynamo`, which takes a second.
        self.register_buffer("window", torch.hann_window(config.window_samples, device="cpu"), persistent=False)
        if config.mel_bands:
            filters = make_mel_filter_bank(config.sample_rate, config.n_fft, config.mel_bands, config.mel_scale)
            self.register_buffer("filters", filters, persistent=False)

    def forward(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch 1 bands frames"]:
        config = self.config
        with torch.autocast(audio.device.type, enabled=False):  # a DFT or mel sum in bf16 has errors of whole log units
            if config.zeros_before or config.zeros_after:
                audio = F.pad(audio, (config.zeros_before, config.zeros_after))
            frames = (
                audio.unfold(-1, config.window_samples, config.hop_samples) * self.window
            )  # (batch, frames, window)
            power = self.compute_power(frames)
            if config.mel_bands == 0:
                magnitude = power.sqrt()
            elif config.mel_of == "power":
                magnitude = (self.filters @ power).sqrt()
            else:
                magnitude = self.filters @ power.sqrt()
            return self._compress(magnitude).unsqueeze(1)

    def compute_power(self, frames: Float[Tensor, "batch frames samples"]) -> Float[Tensor, "batch bins frames"]:
        """The squared magnitude of each frame's Fourier transform."""
        spectrum = torch.fft.rfft(frames, n=self.config.n_fft).mT
        return spectrum.real.square() + spectrum.imag.square()  # takes a third of the time of spectrum.abs()

    def _compress(self, magnitude: Float[Tensor, "batch bands frames"]) -> Float[Tensor, "batch bands frames"]:
        if self.config.scale == "decibels":
            return magnitude_to_decibels(magnitude)
        if self.config.scale == "clamped_log":
            return torch.log(magnitude.clamp(min=self.config.floor)) / 5  # l3embedding, audio_model.py, cnn_L3_orig
        if self.config.scale == "log_power":
            return torch.log10(10_000 * magnitude.square() + 1)  # musicnn, extractor.py
        return torch.log(magnitude + self.config.floor)
