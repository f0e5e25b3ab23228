"""The media files of a folder and of its containers, each with a hash that identifies its version."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from comodal.data.sources.archive_examples import read_archive_examples
from comodal.data.sources.video_sources import list_media_files
from comodal.errors import DataError
from comodal.media.storage.archive_samples import Kind, detect_media_kind
from comodal.media.storage.open_media import find_container, is_container

STAMP_BYTES = 8


class MediaListing(NamedTuple):
    """The media of a folder that can be searched, in the order of their paths.

    Args:
        folder: The folder.
        names: Paths relative to it; members of containers have the path of the container in front.
        kinds: image, audio or video.
        hashes: Of path, size and modification time.
        num_others: Media files of other kinds, by kind.
    """

    folder: Path
    names: list[str]
    kinds: list[Kind]
    hashes: Int64[np.ndarray, "files"]
    num_others: Counter[Kind]


def list_media(folder: Path, media: frozenset[Kind]) -> MediaListing:
    """The media of some kinds in a folder and its containers.

    Raises:
        DataError: There is no such folder, it has no such media, or a container needs a package that is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    names, kinds, stamps, num_others = list[str](), list[Kind](), list[bytes](), Counter[Kind]()
    for name in iterate_media_names(folder):
        kind = detect_media_kind(name)
        if kind not in media:
            num_others.update(() if kind is None else (kind,))
            continue
        names.append(name)
        kinds.append(kind)
        stamps.append(stamp_file(folder, name))
    if not names:
        others = ", ".join(f"{count:,} {kind} files" for kind, count in num_others.items())
        raise DataError(f"{folder} has no {' and no '.join(sorted(media))} files{f' ({others})' if others else ''}")
    return MediaListing(folder, names, kinds, np.frombuffer(b"".join(stamps), "<i8"), num_others)


def iterate_media_names(folder: Path) -> Iterator[str]:
    """The paths of all files, and of the members of containers."""
    for name in list_media_files(folder)[1]:
        if is_container(name):
            for stored in read_archive_examples(folder, name):
                yield from (f"{name}/{member}" for member, _ in stored.example.members.values())
        else:
            yield name


def stamp_file(folder: Path, name: str) -> bytes:
    """A hash of a file's path, size and modification time, or those of its container."""
    try:
        try:
            status = os.stat(f"{folder}/{name}")  # noqa: PTH116 (a Path of each takes as long as the rest)
        except NotADirectoryError:
            status = (find_container(folder / name) or folder / name).stat()
        stamp = f"{name}\n{status.st_size}\n{status.st_mtime_ns}"
    except OSError:  # the reason is reported when it is read
        stamp = name
    return hashlib.blake2b(stamp.encode(errors="surrogateescape"), digest_size=STAMP_BYTES).digest()
