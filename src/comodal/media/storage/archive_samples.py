"""The interface of every kind of container: examples with their members, in order, and the bytes of one member."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES, VIDEO_SUFFIXES

OpenFile: TypeAlias = io.BufferedReader | io.BytesIO
Kind = Literal["image", "audio", "video"]
MAX_MEMBER_BYTES = 16 << 30  # of a video
MAX_TEXT_BYTES = 1 << 20  # of the JSON or the caption of one example


class MemberLocation(NamedTuple):
    """Where a member is in its container: in a tar its first byte and its size, in a table its row and column."""

    start: int
    size: int


class SampleFault(NamedTuple):
    """Why an example cannot be used: a short reason that reports count, and the detail."""

    reason: str
    detail: str


@dataclass
class ArchiveSample:
    """The members of one example. An example with a fault must not be used.

    Attributes:
        key: Its name in the container.
        members: The name in the container of its image, audio and video, each with its location.
        metadata: The values of its JSON member, or of the other columns.
        texts: Its text members by their suffix: `txt` (a caption), `cls` (a class).
        fault: Why it cannot be used.
    """

    key: str
    members: dict[Kind, tuple[str, MemberLocation]] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    fault: SampleFault | None = None

    @property
    def name(self) -> str:
        """Its name in reports: a member, or the key of an example without one."""
        return next((name for name, _ in self.members.values()), self.key)


@runtime_checkable
class Archive(Protocol):
    """A file of examples. A further kind needs one class with this interface and an entry in
    `comodal.media.storage.open_media`.
    """

    def __init__(self, path: Path) -> None: ...

    def iterate_examples(self) -> Iterator[ArchiveSample]:
        """All examples in the order of the file. Damage is reported as an example with a fault."""

    def find(self, name: str) -> MemberLocation:
        """The location of a member; raises KeyError if there is none of that name."""

    def open_member(self, location: MemberLocation) -> OpenFile:
        """The bytes of a member."""


def detect_media_kind(name: str) -> Kind | None:
    """The media kind of a member, by the suffix of its name."""
    suffix = f".{name.lower().rpartition('.')[2]}"
    if suffix in IMAGE_SUFFIXES:
        return "image"
    if suffix in VIDEO_SUFFIXES:
        return "video"
    return "audio" if suffix in AUDIO_SUFFIXES else None


def sanitize_member_name(name: str) -> str:
    """The name of a member as paths and reports show it; it is never used to open a file."""
    parts = name.replace("\0", "").replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", ".", ".."))
