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
from comodal.files import open_to_write, write_bytes_atomically
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
        num_done: Number of images whose features are stored.
        problems: Reason and detail for each of those images that cannot be read.

    Raises:
        DataError: The folder is damaged.
    """

    def __init__(
        self, cache: Path, about: Mapping[str, Any], shape: tuple[int, int, int], stamps: Sequence[str]
    ) -> None:
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]
        self.folder, self.shape, self.stamps = cache / key, shape, stamps
        self.bytes_per_image = 2 * shape[1] * shape[2]
        self.saved_at_seconds = time.monotonic()
        self.problems: dict[int, tuple[str, str]] = {}
        with translate_os_errors(cache):
            if not (self.folder / DONE_FILE).is_file():
                write_bytes_atomically(self.folder / ABOUT_FILE, encode_settings_json(dict(about)))
                write_bytes_atomically(self.folder / FEATURES_FILE, b"")
                self.write_progress(0)
            self.num_done = self.read_num_done()
            os.truncate(self.folder / FEATURES_FILE, self.num_done * self.bytes_per_image)  # drops unrecorded rows

    def read_num_done(self) -> int:
        """The number of images that were saved and are unchanged; checks the size of the feature file."""
        try:
            progress = read_json_object(self.folder / DONE_FILE)
            num_done, digest = int(progress["images"]), progress["stamps"]
            problems = {
                int(index): (str(reason[0]), str(reason[1])) for index, reason in progress.get("unreadable", {}).items()
            }
            num_bytes = (self.folder / FEATURES_FILE).stat().st_size
        except (DataError, OSError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise DataError(f"{self.folder}: the feature cache is damaged ({error}); delete this folder") from error
        if not 0 <= num_done <= self.shape[0] or num_bytes < num_done * self.bytes_per_image:
            raise DataError(
                f"{self.folder / FEATURES_FILE} has {num_bytes:,} bytes, "
                f"and {num_done:,} images take {num_done * self.bytes_per_image:,}; "
                "delete this folder"
            )
        if digest != self.hash_stamps(num_done):
            return 0
        self.problems = problems
        return num_done

    def hash_stamps(self, num_done: int) -> str:
        """A hash of the stamps of the first images."""
        return hashlib.sha256("\n".join(self.stamps[:num_done]).encode()).hexdigest()

    def write_progress(self, num_done: int) -> None:
        """Records how many images are on disk."""
        progress = {"images": num_done, "stamps": self.hash_stamps(num_done), "unreadable": self.problems}
        write_bytes_atomically(self.folder / DONE_FILE, encode_settings_json(progress))

    def append(
        self, features: Float[Tensor, "images views features"], problems: Mapping[int, MediaError] | None = None
    ) -> None:
        """Appends the features of the next images; `problems` has the images without features, and the reasons.

        Raises:
            DataError: A value is not finite, or too large for float16.
        """
        if not features.isfinite().all() or features.abs().max() > MAX_FLOAT16:
            raise DataError(f"{self.folder}: features of image {self.num_done:,} or one soon after are not finite")
        with translate_os_errors(self.folder), open_to_write(self.folder / FEATURES_FILE, "a") as file:
            file.write(features.half().numpy().tobytes())
        self.problems |= {self.num_done + index: (str(e.reason), e.detail) for index, e in (problems or {}).items()}
        self.num_done += len(features)
        if self.num_done == self.shape[0] or time.monotonic() - self.saved_at_seconds > SAVE_INTERVAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Flushes the features to disk, then records their number."""
        with translate_os_errors(self.folder):
            with (self.folder / FEATURES_FILE).open("rb") as file:
                os.fsync(file.fileno())
            self.write_progress(self.num_done)
        self.saved_at_seconds = time.monotonic()

    def open_rows(self) -> Float16[np.ndarray, "images views features"]:
        """All features, memory-mapped."""
        assert self.num_done == self.shape[0]
        return np.memmap(self.folder / FEATURES_FILE, np.float16, "r", shape=self.shape)
