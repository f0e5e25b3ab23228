"""Windows of an audio stream, as OpenL3 cuts them (openl3/core.py, `_preprocess_audio_batch`), in bounded memory.

With `center`, half a window of silence is padded on the left, so that window k is centered on its timestamp k * hop. On
the right, silence is padded until every sample is covered. A hop may be a fractional number of samples: window k starts
at the sample nearest to k * hop, so timestamps stay exact after hours. (OpenL3 hops int(hop * sample_rate) samples and
reports timestamps of k * hop. They differ by up to one more sample with each hop.)
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float

MAX_HOP_SECONDS = 1_000_000


class EmptyAudioError(ValueError):
    """The audio has no samples."""


def compute_window_start(index: int, hop: int | float) -> int:
    """The first sample of a window, counted from the start of the left padding."""
    return math.floor(index * hop + 0.5)


def count_windows(samples: int, window: int, hop: int | float, center: bool) -> int:
    """Number of windows that cover this many samples: at least one."""
    uncovered = samples + (window // 2 if center else 0) - window
    last = max(0, int(uncovered / hop) - 1)
    while compute_window_start(last, hop) < uncovered:
        last += 1
    return 1 + last


def iterate_windows(
    blocks: Iterable[Float[np.ndarray, " samples"]], window: int, hop: int | float, center: bool, batch_size: int
) -> Iterator[Float[np.ndarray, "windows window"]]:
    """Batches of consecutive windows of an audio stream that arrives in consecutive blocks.

    Memory holds one block and one batch, whatever the length of the audio.

    Raises:
        ValueError: the hop is under one sample.
        EmptyAudioError: no sample came in.
    """
    if hop < 1:
        raise ValueError("hop_seconds must be at least one sample")
    held = np.zeros(window // 2 if center else 0, dtype=np.float32)
    dropped = received = sent = 0  # samples before `held`, samples that came in, windows that went out
    for block in blocks:
        received += len(block)
        held = np.concatenate([held, block])
        while True:
            starts = np.floor(np.arange(sent, sent + batch_size) * hop + 0.5).astype(np.int64) - dropped
            ready = starts[starts + window <= len(held)]
            if len(ready):
                yield np.lib.stride_tricks.sliding_window_view(held, window)[ready]
                sent += len(ready)
            done = min(compute_window_start(sent, hop) - dropped, len(held))
            held, dropped = held[done:], dropped + done
            if not len(ready):
                break
    if not received:
        raise EmptyAudioError("the audio is empty")
    if sent < count_windows(received, window, hop, center):
        yield np.pad(held, (0, window - len(held)))[None]
