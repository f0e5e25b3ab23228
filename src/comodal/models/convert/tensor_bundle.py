"""Reads TensorFlow's checkpoint format, the tensor bundle, without TensorFlow: NAME.index and NAME.data-00000-of-00001.

The index is a sorted string table as in LevelDB (tensorflow/core/lib/io/table_format.txt): blocks of entries whose keys
share prefixes, an index block of the data blocks, and a footer that points to it. The value of each tensor's name is a
BundleEntryProto (tensorflow/core/protobuf/tensor_bundle.proto): its type, its shape, and its position in the data.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from comodal.errors import CheckpointError
from comodal.files import open_regular_file

FOOTER_BYTES = 48  # two block handles, padding and the magic number
TABLE_MAGIC = 0xDB4775248B80FB57
TYPE_FLOAT32 = 1  # types.proto, DT_FLOAT
MAX_INDEX_BYTES = 1 << 24


def read_tensor_bundle(folder: Path, name: str = "") -> dict[str, Tensor]:
    """Reads the float32 tensors of a bundle in one file.

    Args:
        folder: The folder of its files.
        name: Its name, which files of musicnn leave empty.

    Raises:
        CheckpointError: A file is missing, damaged, compressed or of another format.
    """
    index_path, data_path = (folder / f"{name}{suffix}" for suffix in (".index", ".data-00000-of-00001"))
    try:
        with open_regular_file(index_path) as file:
            table = file.read(MAX_INDEX_BYTES)
        with open_regular_file(data_path) as file:
            data = file.read()
    except OSError as error:
        raise CheckpointError(f"{error.filename}: {error.strerror}") from error
    tensors = {}
    try:
        for key, entry in iterate_table(table):
            numbers, messages = parse_proto(entry)
            if not key or numbers.get(1) != TYPE_FLOAT32:  # the entry without a name is the header
                continue
            _, shape_messages = parse_proto(b"".join(messages.get(2, [])))
            shape = [parse_proto(dimension)[0].get(1, 0) for dimension in shape_messages.get(2, [])]
            start, size = numbers.get(4, 0), numbers.get(5, 0)
            values = torch.frombuffer(bytearray(data[start : start + size]), dtype=torch.float32)
            tensors[key.decode()] = values.reshape(shape)
    except (IndexError, ValueError, RuntimeError, struct.error, UnicodeDecodeError, TypeError) as error:
        raise CheckpointError(f"{index_path}: damaged, or not a TensorFlow checkpoint: {error}") from error
    return tensors


def iterate_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The keys and values of a sorted string table."""
    footer = table[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or struct.unpack("<Q", footer[-8:])[0] != TABLE_MAGIC:
        raise ValueError("the file does not end as a table")
    _, position = read_handle(footer, 0)  # of the meta index
    index_handle, _ = read_handle(footer, position)
    for _, handle in iterate_block(table, *index_handle):
        yield from iterate_block(table, *read_handle(handle, 0)[0])


def iterate_block(table: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block; each key is stored as what differs from the key before it."""
    if table[offset + size] != 0:
        raise ValueError("compressed blocks are not supported")
    block = table[offset : offset + size]
    num_restarts = struct.unpack("<I", block[-4:])[0]
    position, end, key = 0, len(block) - 4 - 4 * num_restarts, b""
    while position < end:
        shared, position = read_varint(block, position)
        added, position = read_varint(block, position)
        length, position = read_varint(block, position)
        key = key[:shared] + block[position : position + added]
        position += added
        yield key, block[position : position + length]
        position += length


def read_handle(data: bytes, position: int) -> tuple[tuple[int, int], int]:
    """The offset and the size of a block, and the position after them."""
    offset, position = read_varint(data, position)
    size, position = read_varint(data, position)
    return (offset, size), position


def read_varint(data: bytes, position: int) -> tuple[int, int]:
    """A number of 7 bits a byte, low bits first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, position


def parse_proto(message: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """The numbers of a protocol buffer message by field, and its messages, which may be repeated."""
    position, numbers, messages = 0, dict[int, int](), dict[int, list[bytes]]()
    while position < len(message):
        tag, position = read_varint(message, position)
        field, kind = tag >> 3, tag & 7
        if kind == 0:
            numbers[field], position = read_varint(message, position)
        elif kind == 2:
            length, position = read_varint(message, position)
            messages.setdefault(field, []).append(message[position : position + length])
            position += length
        elif kind == 5:
            position += 4  # a checksum
        else:
            raise ValueError(f"a field of kind {kind}")
    return numbers, messages
