"""Resampling as in OpenL3: band-limited interpolation by a Kaiser-windowed sinc (Smith, "Digital Audio
Resampling Home Page"), with the coefficients and the table look-up of resampy 0.2's `kaiser_best`.

OpenL3 0.2 to 0.4 resamples with it, so its published weights expect this filter. All other audio is resampled by soxr
(audio.py), which is several times as fast.
"""

from fractions import Fraction

import numpy as np
from jaxtyping import Float, Float64

ZERO_CROSSINGS = 64
TABLE_STEPS = 512  # of the table between two zero crossings
ROLL_OFF = 0.9475937167399596
KAISER_BETA = 14.769656459379492
MAX_SAMPLE_RATE = 10_000_000.0
SPLIT = 128  # input samples that a group of output samples spans: its matrix is half zeros then


def build_half_window() -> Float64[np.ndarray, " table"]:
    """The right half of the filter, from its center to the last zero crossing."""
    positions = np.linspace(0, ZERO_CROSSINGS, ZERO_CROSSINGS * TABLE_STEPS + 1)
    taper = np.kaiser(2 * len(positions) - 1, KAISER_BETA)[len(positions) - 1 :]
    return ROLL_OFF * np.sinc(ROLL_OFF * positions) * taper


class KaiserStream:
    """Resamples mono audio block by block, in float64. The concatenated blocks equal the result for the whole waveform.

    The output's positions among the input repeat every `down` input samples, after `up` output samples. Each such
    period is a few matrix products, whose rows are the filter at those positions.
    """

    def __init__(self, sample_rate: int | float, new_sample_rate: int | float) -> None:
        if not 0 < sample_rate <= MAX_SAMPLE_RATE or not 0 < new_sample_rate <= MAX_SAMPLE_RATE:
            raise ValueError(f"cannot resample from {sample_rate} to {new_sample_rate} Hz")
        self.ratio = new_sample_rate / sample_rate
        period = Fraction(new_sample_rate).limit_denominator(1000) / Fraction(sample_rate).limit_denominator(1000)
        self.up, self.down = period.numerator, period.denominator
        self.reach = int(len(build_half_window()) // max(1, int(min(1.0, self.ratio) * TABLE_STEPS)))
        self.groups = self._build_matrices()
        self.held = np.zeros(self.reach - 1)
        self.received, self.sent = 0, 0

    def _build_matrices(self) -> list[tuple[int, Float64[np.ndarray, "width positions"]]]:
        """For each group of positions its first input sample and its matrix."""
        steps = np.arange(self.up) * self.down
        input_indices, part = steps // self.up, (steps % self.up) / self.up
        groups = []
        first = 0
        while first < self.up:
            last = int(np.searchsorted(input_indices, input_indices[first] + SPLIT))
            width = int(input_indices[last - 1] - input_indices[first]) + 2 * self.reach
            matrix = np.zeros((last - first, width))
            left, right = self._compute_wings(part[first:last])
            for row, begin in enumerate(input_indices[first:last] - input_indices[first]):
                matrix[row, begin : begin + 2 * self.reach] = np.concatenate([left[row, ::-1], right[row]])
            groups.append((int(input_indices[first]), np.ascontiguousarray(matrix.T)))
            first = last
        return groups

    def _compute_wings(
        self, part: Float64[np.ndarray, " positions"]
    ) -> tuple[Float64[np.ndarray, "positions reach"], Float64[np.ndarray, "positions reach"]]:
        """Weights of the samples at and before each position, nearest first, and of those after it.

        The table is read with linear interpolation, at a whole number of its steps for each input sample, as in
        resampy. When downsampling, that changes the filter by less than one part in `TABLE_STEPS`.
        """
        scale = min(1.0, self.ratio)
        window = build_half_window() * scale
        slope = np.append(np.diff(window), 0.0)
        step = max(1, int(scale * TABLE_STEPS))
        wings = []
        for distance in (scale * part, scale - scale * part):
            offset = np.floor(distance * TABLE_STEPS).astype(int)
            index = offset[:, None] + step * np.arange(self.reach)
            inside = np.arange(self.reach) < (len(window) - offset[:, None]) // step
            index = np.minimum(index, len(window) - 1)
            wings.append(inside * (window[index] + (distance * TABLE_STEPS - offset)[:, None] * slope[index]))
        return wings[0], wings[1]

    def push(self, block: Float[np.ndarray, " samples"]) -> Float64[np.ndarray, " new_samples"]:
        """The output samples that are final after this block."""
        self.received += len(block)
        return self._filter_periods(np.concatenate([self.held, block]))

    def finish(self) -> Float64[np.ndarray, " new_samples"]:
        """The remaining output; the input is padded with silence."""
        rest = self._filter_periods(np.concatenate([self.held, np.zeros(self.down + 2 * self.reach)]))
        return rest[: len(rest) - max(0, self.sent - int(self.received * self.ratio))]

    def _filter_periods(self, held: Float64[np.ndarray, " held"]) -> Float64[np.ndarray, " new_samples"]:
        periods = max(0, (len(held) - 2 * self.reach) // self.down)
        self.held = held[periods * self.down :]
        if not periods:
            return np.zeros(0)
        parts = []
        for begin, matrix in self.groups:
            windows = np.lib.stride_tricks.sliding_window_view(held[begin:], len(matrix))[:: self.down][:periods]
            parts.append(windows @ matrix)
        self.sent += periods * self.up
        return np.concatenate(parts, axis=1).reshape(-1)


def resample_kaiser(
    waveform: Float[np.ndarray, " samples"], sample_rate: int | float, new_sample_rate: int | float
) -> Float64[np.ndarray, " new_samples"]:
    """Change the sample rate of a whole waveform; the result has int(samples * new_rate / rate) samples."""
    if sample_rate == new_sample_rate:
        return waveform.astype(np.float64)
    stream = KaiserStream(sample_rate, new_sample_rate)
    return np.concatenate([stream.push(waveform), stream.finish()])
