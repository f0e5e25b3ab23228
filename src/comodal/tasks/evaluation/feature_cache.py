"""Features of many images on disk, memory-mapped, so that a probe of a million images needs one pass over them.

There is one folder for each (network, view). Its name is a hash of what the features depend on: the weights, the layer
and its pooling, the view, the names of the images. Rows are written in order, so that an interrupted pass resumes where
it stopped. If one of the images so far has changed since, the pass starts again. An image that cannot be read has a row
of zeros, and the reason is recorded. Features are stored as float16; those computed in bfloat16 lose no precision.
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
    """The features of images in one view, from one network.

    Args:
        cache: Folder of all feature files.
        about: What the features depend on besides the images' contents, as JSON values.
        shape: Images, views of each, features.
        stamps: For each image, a text that changes with its content.

    Attributes:
        done: Number of images whose features are stored.
        problems: Reason and detail for each of those images that cannot be read.

    Raises:
        DataError: The folder is damaged.
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
            os.truncate(self.folder / FEATURES_FILE, self.done * self.bytes_each)  # drops unrecorded rows

    def read_done(self) -> int:
        """The number of images that were saved and are unchanged; checks the size of the feature file."""
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
        """A hash of the stamps of the first images."""
        return hashlib.sha256("\n".join(self.stamps[:done]).encode()).hexdigest()

    def note(self, done: int) -> None:
        """Records how many images are on disk."""
        noted = {"pictures": done, "stamps": self.digest(done), "unreadable": self.problems}
        write_bytes_atomically(self.folder / DONE_FILE, encode_settings_json(noted))

    def append(
        self, features: Float[Tensor, "pictures shots features"], problems: Mapping[int, MediaError] | None = None
    ) -> None:
        """Appends the features of the next images; `problems` has the images without features, and the reasons.

        Raises:
            DataError: A value is not finite, or too large for float16.
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
        """Flushes the features to disk, then records their number."""
        with translate_os_errors(self.folder):
            with (self.folder / FEATURES_FILE).open("rb") as file:
                os.fsync(file.fileno())
            self.note(self.done)
        self.saved_at = time.monotonic()

    def rows(self) -> Float16[np.ndarray, "pictures shots features"]:
        """All features, memory-mapped."""
        assert self.done == self.shape[0]
        return np.memmap(self.folder / FEATURES_FILE, np.float16, "r", shape=self.shape)
