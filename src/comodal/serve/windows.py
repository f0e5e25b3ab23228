"""Windows of a stream of sound, as OpenL3 cuts them (openl3/core.py, `_preprocess_audio_batch`), in bounded memory.

With `centre`, half a window of silence is put on the left, so that window k is centred on its timestamp k * hop. On
the right there is silence until every sample is covered. A window starts every int(hop * sample_rate) samples.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from jaxtyping import Float


class EmptySoundError(ValueError):
    """There is not one sample."""


def count_windows(samples: int, window: int, hop: int, centre: bool) -> int:
    """How many windows cover a sound of so many samples: at least one."""
    beyond = samples + (window // 2 if centre else 0) - window
    return 1 + max(0, -(-beyond // hop))


def iterate_windows(
    blocks: Iterable[Float[np.ndarray, " samples"]], window: int, hop: int, centre: bool, batch_size: int
) -> Iterator[Float[np.ndarray, "windows window"]]:
    """Batches of consecutive windows of the sound whose consecutive blocks come in.

    Held at a time: one block and one batch, whatever the length of the sound.

    Raises:
        ValueError: the hop is under one sample.
        EmptySoundError: no sample came in.
    """
    if hop < 1:
        raise ValueError("hop_seconds must be at least one sample")
    held = np.zeros(window // 2 if centre else 0, dtype=np.float32)
    skip = 0  # samples to drop before the next window: a hop may be longer than what is held
    received, sent = 0, 0
    for block in blocks:
        received += len(block)
        held = np.concatenate([held, block])
        skip, held = max(0, skip - len(held)), held[skip:]
        while len(held) >= window:
            batch = np.lib.stride_tricks.sliding_window_view(held, window)[::hop][:batch_size]
            sent += len(batch)
            yield batch.copy()
            skip, held = max(0, len(batch) * hop - len(held)), held[len(batch) * hop :]
    if not received:
        raise EmptySoundError("the sound is empty")
    if sent < count_windows(received, window, hop, centre):
        yield np.pad(held, (0, window - len(held)))[None]
