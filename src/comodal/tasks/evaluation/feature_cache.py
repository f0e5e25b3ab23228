"""Features of many pictures on disk, memory-mapped: a probe of a million pictures is one pass over them.

One folder for each (network, view), named by a hash of what its numbers depend on: the weights, the layer and its
pooling, the view, the names of the pictures. Rows are written in order, so that a pass that was stopped goes on where
it was; if one of the pictures so far has changed since, it begins anew. A picture that cannot be read has a row of
zeros, and is noted with the reason. Numbers are float16: features that were
computed in bfloat16 lose nothing by it.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float16
from torch import Tensor

from comodal.data.output_folder import encode_settings_json, translate_os_errors
from comodal.errors import DataError, MediaError
from comodal.files import write_bytes_atomically
from comodal.text_files import read_json_object

ABOUT_FILE, DONE_FILE, FEATURES_FILE = "about.json", "done.json", "features.bin"
SAVE_INTERVAL_SECONDS = 30.0
MAX_FLOAT16 = float(np.finfo(np.float16).max)


class FeatureFile:
    """The features of some pictures, as they were seen in one view by one network.

    Args:
        cache: Folder of all such files.
        about: What the numbers depend on beside the pictures' contents, as JSON has it.
        shape: Pictures, shots of each, features.
        stamps: Of each picture, something that changes when its content does.

    Attributes:
        done: Pictures whose features are there.
        problems: Reason and detail of those among them that cannot be read.

    Raises:
        DataError: The folder was damaged.
    """

    def __init__(
        self, cache: Path, about: Mapping[str, Any], shape: tuple[int, int, int], stamps: Sequence[str]
    ) -> None:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.shape, self.stamps = cache / key, shape, stamps
        self.bytes_each = 2 * shape[1] * shape[2]
        self.saved_at = time.monotonic()
        self.problems: dict[int, tuple[str, str]] = {}
        with translate_os_errors(cache):
            if not (self.folder / DONE_FILE).is_file():
                write_bytes_atomically(self.folder / ABOUT_FILE, encode_settings_json(dict(about)))
                write_bytes_atomically(self.folder / FEATURES_FILE, b"")
                self.note(0)
            self.done = self.read_done()
            os.truncate(self.folder / FEATURES_FILE, self.done * self.bytes_each)  # what a killed pass left unsaved

    def read_done(self) -> int:
        """How many pictures were saved and are still the same; the file of features must have room for them."""
        try:
            noted = read_json_object(self.folder / DONE_FILE)
            done, digest = int(noted["pictures"]), noted["stamps"]
            problems = {int(place): (str(why[0]), str(why[1])) for place, why in noted.get("unreadable", {}).items()}
            there = (self.folder / FEATURES_FILE).stat().st_size
        except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{self.folder}: a damaged feature cache ({error}); delete this folder") from error
        if not 0 <= done <= self.shape[0] or there < done * self.bytes_each:
            raise DataError(
                f"{self.folder / FEATURES_FILE} has {there:,} bytes, "
                f"and {done:,} images take {done * self.bytes_each:,}; "
                "delete this folder"
            )
        if digest != self.digest(done):
            return 0
        self.problems = problems
        return done

    def digest(self, done: int) -> str:
        """Of the stamps of the first pictures."""
        return hashlib.sha256("\n".join(self.stamps[:done]).encode()).hexdigest()

    def note(self, done: int) -> None:
        """Writes down how many pictures are on disk."""
        noted = {"pictures": done, "stamps": self.digest(done), "unreadable": self.problems}
        write_bytes_atomically(self.folder / DONE_FILE, encode_settings_json(noted))

    def append(
        self, features: Float[Tensor, "pictures shots features"], problems: Mapping[int, MediaError] | None = None
    ) -> None:
        """The features of the next pictures; `problems` says of which of these there are none, and why.

        Raises:
            DataError: A number is not finite, or too large for float16.
        """
        if not features.isfinite().all() or features.abs().max() > MAX_FLOAT16:
            raise DataError(f"{self.folder}: picture {self.done:,} or one soon after has features that are no numbers")
        with translate_os_errors(self.folder), (self.folder / FEATURES_FILE).open("ab") as file:
            file.write(features.half().numpy().tobytes())
        self.problems |= {self.done + place: (str(e.reason), e.detail) for place, e in (problems or {}).items()}
        self.done += len(features)
        if self.done == self.shape[0] or time.monotonic() - self.saved_at > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Brings everything to disk, then notes it."""
        with translate_os_errors(self.folder):
            with (self.folder / FEATURES_FILE).open("rb") as file:
                os.fsync(file.fileno())
            self.note(self.done)
        self.saved_at = time.monotonic()

    def rows(self) -> Float16[np.ndarray, "pictures shots features"]:
        """All of them, as they lie on disk."""
        assert self.done == self.shape[0]
        return np.memmap(self.folder / FEATURES_FILE, np.float16, "r", shape=self.shape)
