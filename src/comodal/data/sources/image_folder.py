"""The images of a folder, of a pattern or of one container, each by its path below one folder."""

from pathlib import Path
from typing import NamedTuple

from comodal.data.sources.archive_examples import read_archive_examples
from comodal.data.sources.video_sources import find_media_root, list_media_files
from comodal.errors import DataError
from comodal.media.storage.archive_samples import SampleFault
from comodal.media.storage.open_media import is_container
from comodal.media.storage.path_patterns import is_path_pattern
from comodal.media.storage.suffixes import IMAGE_SUFFIXES


class FoundImages(NamedTuple):
    """Images below a folder, in the order of the files, and the damage in containers."""

    root: Path
    names: list[str]
    damaged: list[tuple[str, SampleFault]]


def find_image_root(images: Path) -> Path:
    """The folder that image paths are relative to: a folder itself, else the folder of a container or a pattern."""
    return find_media_root(images, None) if is_path_pattern(images) or images.is_file() else images


def find_image_files(images: Path) -> FoundImages:
    """All images of a folder with its containers, of a container, or of the files that a pattern names.

    Raises:
        DataError: There is no such folder or file, no image in it, or a container needs a package that is missing.
    """
    if not (is_path_pattern(images) or images.is_dir() or (images.is_file() and is_container(images.name))):
        raise DataError(f"{images}: there is no such folder of images, and no tar, Parquet or Arrow file of that name")
    root, files = list_media_files(images)
    images_found = FoundImages(root, [], [])
    for file in files:
        if is_container(file) and (root / file).is_file():
            for stored in read_archive_examples(root, file):
                if stored.example.fault is not None:
                    images_found.damaged.append((stored.path, stored.example.fault))
                elif "image" in stored.example.members:
                    images_found.names.append(f"{file}/{stored.example.members['image'][0]}")
        elif file.lower().endswith(IMAGE_SUFFIXES):
            images_found.names.append(file)
        elif is_path_pattern(images) and not (root / file).exists():
            images_found.damaged.append(
                (file, SampleFault("missing", "the pattern names it, and there is no such file"))
            )
    if not images_found.names:
        kinds = f"{', '.join(IMAGE_SUFFIXES)}, or tar, Parquet and Arrow files of them"
        damage = "".join(f": {fault.detail}" for _, fault in images_found.damaged[:1])
        raise DataError(f"{images} holds no images ({kinds}){damage}")
    return images_found
