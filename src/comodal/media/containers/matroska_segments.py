"""Whether data follows the first segment of a Matroska or WebM file, as in concatenated files.

The length in the header is that of the first segment alone. FFmpeg reads on in the next one. The layout is that of
RFC 8794 (EBML) and RFC 9559 (Matroska): elements with an identifier, a size of variable length, and content.
"""

from pathlib import Path

from comodal.media.storage.open_media import open_media

EBML_ID, SEGMENT_ID = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
MAX_HEADER_BYTES = 1 << 16


def has_second_segment(path: Path) -> bool:
    """Whether a file has data behind its first segment; not if the segment declares no size, as in live streams.

    Raises:
        OSError: The file cannot be read.
    """
    with open_media(path) as file:
        head, end = file.read(MAX_HEADER_BYTES), file.seek(0, 2)
    position = 0
    for identifier in (EBML_ID, SEGMENT_ID):
        if head[position : position + 4] != identifier or position + 12 > len(head):
            return False
        length, size = read_element_size(head[position + 4 : position + 12])
        position += 4 + length + (size or 0 if identifier == EBML_ID else 0)
    return size is not None and position + size < end


def read_element_size(data: bytes) -> tuple[int, int | None]:
    """The number of bytes of an element's size, and the size; None if it is unknown (all bits are set)."""
    length = 9 - data[0].bit_length()
    if length > 8:
        return 8, None
    value = int.from_bytes(data[:length], "big") & ((1 << 7 * length) - 1)
    return length, None if value == (1 << 7 * length) - 1 else value
