"""The spectrogram in operations that every runtime supports: a Fourier transform of two small matrix products.

ONNX has a Fourier transform, but OpenVINO cannot read it and other runtimes lack it. A transform of n = outer x inner
samples is computed as `outer` short ones, twiddle factors, and `inner` short ones (Cooley and Tukey, 1965). It is as
exact as an FFT in float32. Its tables take a few kilobytes; the matrix of a full transform takes megabytes.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from comodal.models.l3net.spectrogram import Spectrogram, SpectrogramConfig


class PortableSpectrogram(Spectrogram):
    """`Spectrogram` without `torch.fft`."""

    outer_real: Tensor
    outer_imaginary: Tensor
    turn_real: Tensor
    turn_imaginary: Tensor
    inner_real: Tensor
    inner_imaginary: Tensor

    def __init__(self, config: SpectrogramConfig) -> None:
        super().__init__(config)
        n = config.n_fft
        inner = max(divisor for divisor in range(1, math.isqrt(n) + 1) if n % divisor == 0)
        self.parts = (n // inner, inner)
        outer_steps = torch.arange(n // inner, dtype=torch.float64)
        inner_steps = torch.arange(inner, dtype=torch.float64)
        angles = {
            "outer": torch.outer(outer_steps, outer_steps) * inner,
            "turn": torch.outer(outer_steps, inner_steps),
            "inner": torch.outer(inner_steps, inner_steps) * (n // inner),
        }
        for name, angle in angles.items():
            self.register_buffer(f"{name}_real", torch.cos(2 * math.pi / n * angle).float(), persistent=False)
            self.register_buffer(f"{name}_imaginary", -torch.sin(2 * math.pi / n * angle).float(), persistent=False)

    def compute_power(self, frames: Float[Tensor, "batch frames samples"]) -> Float[Tensor, "batch bins frames"]:
        """Sample inner * a + b, and bin c + outer * d, with a and c below outer, b and d below inner."""
        x = F.pad(frames, (0, self.config.n_fft - self.config.window_samples)).unflatten(-1, self.parts)
        real, imaginary = self.outer_real @ x, self.outer_imaginary @ x  # (batch, frames, c, b)
        real, imaginary = (
            real * self.turn_real - imaginary * self.turn_imaginary,
            real * self.turn_imaginary + imaginary * self.turn_real,
        )
        real, imaginary = (  # (batch, frames, c, d)
            real @ self.inner_real - imaginary @ self.inner_imaginary,
            real @ self.inner_imaginary + imaginary @ self.inner_real,
        )
        power = (real.square() + imaginary.square()).mT.flatten(-2)
        return power[..., : self.config.n_fft // 2 + 1].mT
