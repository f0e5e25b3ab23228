"""Media by path, for a file or for a member of a container: `shards/00000.tar/000001.mp4`.

The path of a member is the path of its container plus its name in it. The readers of images, audio and video open
everything through this module.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path

from comodal.errors import DataError, MediaError
from comodal.media.storage.archive_samples import Archive, MemberLocation, OpenFile
from comodal.media.storage.parquet_table import TableFile
from comodal.media.storage.tar_shard import TarShard

CONTAINER_TYPES: dict[str, Callable[[Path], Archive]] = {".tar": TarShard, ".parquet": TableFile, ".arrow": TableFile}
MAX_OPEN_CONTAINERS = 4  # containers that a process keeps, with the names of their members
_remembered_locations: ContextVar[dict[Path, MemberLocation]] = ContextVar("_remembered_locations", default={})  # noqa: B039 (never changed in place)


def open_media(path: Path) -> OpenFile:
    """Open a file, or a member of a container, for reading bytes.

    Raises:
        OSError: There is no such file, or it cannot be read.
        MediaError: The container is damaged, or has no such member.
    """
    try:
        return path.open("rb")
    except NotADirectoryError:
        container = find_container(path)
        if container is None:
            raise
    try:
        archive = open_container_file(container)
        location = _remembered_locations.get().get(path) or archive.find(path.relative_to(container).as_posix())
        return archive.open_member(location)
    except KeyError:
        raise MediaError(path, "missing", f"{container.name} has no such member") from None
    except DataError as error:
        raise MediaError(path, "unreadable", str(error)) from error


@contextmanager
def remember_locations(locations: dict[Path, MemberLocation]) -> Iterator[None]:
    """Register members whose location is known, so that they need not be searched."""
    token = _remembered_locations.set(locations)
    try:
        yield
    finally:
        _remembered_locations.reset(token)


def find_container(path: Path) -> Path | None:
    """The container of a member's path, or None if the path is not a member's."""
    for parent in path.parents:
        if parent.suffix.lower() in CONTAINER_TYPES and parent.is_file():
            return parent
    return None


def is_container(name: str) -> bool:
    """Whether a file is a container by its name. Called for every file of a folder, so it creates few Path objects."""
    return name.lower().endswith(tuple(CONTAINER_TYPES)) and Path(name).suffix.lower() in CONTAINER_TYPES


def open_container_file(path: Path) -> Archive:
    """An open container; the same object until the file changes.

    Raises:
        OSError: It cannot be read.
        DataError: It is damaged, or its reader is not installed.
    """
    status = path.stat()
    return _open_cached_container(path, status.st_mtime_ns, status.st_size)


@lru_cache(MAX_OPEN_CONTAINERS)
def _open_cached_container(path: Path, _changed: int, _size: int) -> Archive:
    return CONTAINER_TYPES[path.suffix.lower()](path)
