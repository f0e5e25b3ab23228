"""Tar shards in the WebDataset convention: members whose names are equal up to the first dot form one example.

webdataset, video2dataset (`000001.mp4`, `.json`, `.txt`, `.m4a`) and img2dataset (`000001.jpg`, `.json`, `.txt`) write
them. Members are read in place; nothing is unpacked. Unlike in the webdataset library, the members of one key need not
be adjacent.
"""

from collections.abc import Iterator
from pathlib import Path

from comodal.errors import DataError
from comodal.media.storage.archive_samples import (
    MAX_MEMBER_BYTES,
    MAX_TEXT_BYTES,
    ArchiveSample,
    MemberLocation,
    OpenFile,
    SampleFault,
    detect_media_kind,
    sanitize_member_name,
)
from comodal.media.storage.file_window import open_file_window
from comodal.media.storage.tar_headers import TarDamage, TarHeader, TarReader, open_tar
from comodal.text_files import decode_text, parse_json

TEXT_ENDINGS = ("txt", "cls")


class TarShard:
    """One tar file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._locations: dict[str, MemberLocation] | None = None

    def iterate_examples(self) -> Iterator[ArchiveSample]:
        """Examples in the order of their first members; damage is reported where it is found."""
        samples: dict[str, dict[str, TarHeader]] = {}
        faults: list[ArchiveSample] = []
        with open_tar(self.path) as tar:
            for member in tar.iterate_members():
                if isinstance(member, TarDamage):
                    faults.append(ArchiveSample("", fault=SampleFault(member.reason, member.detail)))
                    continue
                name = sanitize_member_name(member.name)
                key, ending = split_member_name(name)
                sample = samples.setdefault(key, {})
                if ending in sample:
                    detail = f"{name} occurs in the archive more than once; the first one is used"
                    faults.append(ArchiveSample(name, fault=SampleFault("key twice", detail)))
                sample.setdefault(ending, member._replace(name=name))
            for key, members in samples.items():
                if any(map(is_read_suffix, members)):
                    yield build_archive_sample(tar, key, members)
        yield from faults

    def find(self, name: str) -> MemberLocation:
        """The location of a member; the first one if several have that name."""
        if self._locations is None:
            self._locations = {}
            with open_tar(self.path) as tar:
                for member in tar.iterate_members():
                    if isinstance(member, TarHeader) and not member.error_message:
                        self._locations.setdefault(
                            sanitize_member_name(member.name), MemberLocation(member.start, member.size)
                        )
        return self._locations[name]

    def open_member(self, location: MemberLocation) -> OpenFile:
        """The bytes of a member, read from the archive on demand."""
        return open_file_window(self.path, location.start, location.size)


def build_archive_sample(tar: TarReader, key: str, members: dict[str, TarHeader]) -> ArchiveSample:
    """The members of one key; a text member is read."""
    example = ArchiveSample(key)
    for ending in sorted(members, key=lambda ending: "." in ending):  # 1.jpg before 1.depth.png
        kind, member = detect_media_kind(ending), members[ending]
        if kind is not None:
            example.members.setdefault(kind, (member.name, MemberLocation(member.start, member.size)))
    for ending, member in members.items():
        if is_read_suffix(ending) and example.fault is None:
            example.fault = find_member_fault(member, ending) or (
                None if detect_media_kind(ending) else add_sample_text(tar, example, ending, member)
            )
    return example


def find_member_fault(member: TarHeader, ending: str) -> SampleFault | None:
    """Why a member cannot be read."""
    if member.error_message:
        return SampleFault("truncated" if member.truncated else "not a file", f"{member.name}: {member.error_message}")
    if member.size > (MAX_MEMBER_BYTES if detect_media_kind(ending) else MAX_TEXT_BYTES):
        return SampleFault("too large", f"{member.name} has {member.size:,} bytes")
    return None


def add_sample_text(tar: TarReader, example: ArchiveSample, ending: str, member: TarHeader) -> SampleFault | None:
    """Read a text or JSON member into an example, or return the reason why it cannot be read."""
    try:
        text = decode_text(tar.read(member.start, member.size), member.name)
        if ending != "json":
            example.texts[ending] = text
            return None
        value = parse_json(text, member.name)
    except DataError as error:
        return SampleFault("damaged", str(error))
    if not isinstance(value, dict):
        return SampleFault("damaged", f"{member.name} is not a JSON object")
    example.metadata = value
    return None


def is_read_suffix(ending: str) -> bool:
    """Whether members of that suffix are read."""
    return ending == "json" or ending in TEXT_ENDINGS or detect_media_kind(ending) is not None


def split_member_name(name: str) -> tuple[str, str]:
    """`folder/000001.mp4` is `folder/000001` and `mp4`; the key ends at the first dot of the last part."""
    folder, slash, last = name.rpartition("/")
    key, _, ending = last.partition(".")
    return f"{folder}{slash}{key}", ending.lower()
