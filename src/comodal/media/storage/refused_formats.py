"""Reasons why a file is refused, as reports count them, and the detection of files that hold no media."""

import os
import stat
from enum import StrEnum
from pathlib import Path

from comodal.errors import MediaError
from comodal.media.storage.open_media import open_media

SIGNATURE_BYTES = 512
MIN_SAMPLE_RATE, MAX_SAMPLE_RATE = 1_000, 768_000  # of audio; outside this range a header is broken or malicious
MAX_AMPLITUDE = (
    1e10  # of floats; full scale is 1, but some files have the range of 32-bit integers; larger values overflow
)
MAX_GAP_SECONDS = 6 * 3600.0  # for which a frame may stay, or audio pause; a longer gap is a broken timestamp


class RefusalReason(StrEnum):
    """The `reason` of every MediaError raised by reading media."""

    MISSING = "missing"
    UNREADABLE = "unreadable"
    NOT_A_VIDEO = "not a video"
    NO_VIDEO_STREAM = "no video stream"
    NO_AUDIO_STREAM = "no audio stream"
    TOO_SHORT = "too short"
    TRUNCATED = "truncated"
    SILENT = "silent"
    TOO_LARGE = "too large"


def read_first_bytes(path: Path) -> bytes:
    """The first bytes of a regular file.

    Raises:
        MediaError: missing, or unreadable (a folder, a pipe, no permission, an invalid file name).
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        name = os.fsencode(path).decode(errors="replace")
        raise MediaError(name, RefusalReason.UNREADABLE, "its name is not UTF-8; rename it") from None
    try:
        if is_special_file(path):
            raise MediaError(path, RefusalReason.UNREADABLE, "not a regular file")
        with open_media(path) as file:
            return file.read(SIGNATURE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError(path, RefusalReason.MISSING, "there is no such file") from None
    except OSError as error:
        raise MediaError(path, RefusalReason.UNREADABLE, error.strerror or str(error)) from None


def is_special_file(path: Path) -> bool:
    """Whether the path exists and is not a regular file: a folder, a pipe (which would block), a device."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except NotADirectoryError:  # a member of a container
        return False


def describe_non_media(head: bytes) -> str | None:
    """What a file that begins with `head` is, when its first bytes show that it holds no media."""
    if not head:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the file itself (git lfs pull fetches it)"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page or XML"
    if all(byte in b"\t\n\r\x0c" or 32 <= byte < 127 for byte in head):
        return "plain text"
    return None
