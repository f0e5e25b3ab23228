"""An in-memory cache of decoded frames and audio: small data sets are decoded once instead of in every epoch."""

from collections.abc import Callable, Hashable

import numpy as np


class DecodedCache:
    """Arrays by key, up to `max_bytes`; further ones are decoded each time.

    Every clip is read equally often in an epoch, so the first ones are as good to keep as any. Arrays are read-only.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes ({max_bytes}) must not be negative")
        self.free_bytes = max_bytes
        self.arrays: dict[Hashable, np.ndarray] = {}

    def get(self, key: Hashable, decode: Callable[[], np.ndarray]) -> np.ndarray:
        """The array of a key."""
        array = self.arrays.get(key)
        if array is None:
            array = decode()
            if array.nbytes <= self.free_bytes:
                array.flags.writeable = False
                self.free_bytes -= array.nbytes
                self.arrays[key] = array
        return array
