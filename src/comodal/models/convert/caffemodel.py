"""A `.caffemodel` without Caffe: the protobuf wire format of its weights, and nothing else of it.

NetParameter has a layer in each field 100 (those of Caffe before 2014 in field 2, which nobody wrote these networks
with), LayerParameter its name in 1 and weights in 7, BlobProto its numbers in 5 (packed or one by one) or as doubles in
8, its shape in 7, or as four numbers in 1 to 4 (caffe.proto; protobuf.dev/programming-guides/encoding).
"""

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from comodal.errors import CheckpointError

VARINT, EIGHT, BYTES, FOUR = 0, 1, 2, 5
LAYER, NAME, BLOBS, SHAPE, NUMBERS, DOUBLES = 100, 1, 7, 7, 5, 8
OLD_SHAPE = (1, 2, 3, 4)
MOST_BYTES = 2**31  # Caffe itself reads no more
MOST_LAYERS, MOST_FIELDS, MOST_AXES = 10_000, 200_000, 32


class ProtobufField(NamedTuple):
    """One field of a message: its number, how it is kept, and an integer or bytes."""

    number: int
    kind: int
    value: int | memoryview


def read_caffemodel(path: Path) -> dict[str, list[Tensor]]:
    """The weights of each layer that has any, by its name.

    Raises:
        CheckpointError: It cannot be read, or is no whole file of Caffe.
    """
    try:
        if not path.is_file() or path.stat().st_size > MOST_BYTES:
            raise ValueError(f"not a file of at most {MOST_BYTES:,} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            layers = layers_of(bytes(mapped))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: not a whole .caffemodel: {error}") from error
    if not layers:
        raise CheckpointError(f"{path}: not a .caffemodel with weights")
    return layers


def layers_of(data: bytes) -> dict[str, list[Tensor]]:
    """Layers with weights."""
    layers: dict[str, list[Tensor]] = {}
    allowed = iter(range(MOST_FIELDS))  # of the whole file, since each takes a hundred bytes and some time
    for field in fields(memoryview(data), allowed):
        if field.number == LAYER:
            inside = list(fields(bytes_of(field), allowed))
            name = next((str(bytes_of(part), "utf-8") for part in inside if part.number == NAME), "")
            blobs = [blob(bytes_of(part), allowed) for part in inside if part.number == BLOBS]
            if name in layers:
                raise ValueError(f"two layers are called {name}")
            if blobs:
                layers[name] = blobs
        if len(layers) > MOST_LAYERS:
            raise ValueError("too many layers")
    return layers


def fields(data: memoryview, allowed: Iterator[int]) -> Iterator[ProtobufField]:
    """The fields of a message, one behind the other, as long as more are allowed."""
    place = 0
    while place < len(data):
        if next(allowed, None) is None:
            raise ValueError(f"more than {MOST_FIELDS:,} fields")
        key, place = varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = varint(data, place)
            yield ProtobufField(number, kind, value)
            continue
        if kind == BYTES:
            length, place = varint(data, place)
        elif kind in (EIGHT, FOUR):
            length = 8 if kind == EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {place:,}")
        if place + length > len(data):
            raise ValueError("it ends in the middle of its weights")
        yield ProtobufField(number, kind, data[place : place + length])
        place += length


def varint(data: memoryview, place: int) -> tuple[int, int]:
    """A whole number of seven bits a byte, and where the next begins."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError(f"a number without an end before byte {place:,}")


def bytes_of(field: ProtobufField) -> memoryview:
    """What a field must hold to be read further."""
    if isinstance(field.value, int):
        raise ValueError(f"field {field.number} is a number")
    return field.value


def blob(data: memoryview, allowed: Iterator[int]) -> Tensor:
    """One tensor of numbers."""
    found: dict[int, list[ProtobufField]] = {}
    for field in fields(data, allowed):
        found.setdefault(field.number, []).append(field)
    kept, code = (NUMBERS, "<f4") if NUMBERS in found else (DOUBLES, "<f8")
    numbers = np.frombuffer(b"".join(bytes_of(field) for field in found.get(kept, [])), code)
    if SHAPE in found:
        dims = [field for part in fields(bytes_of(found[SHAPE][0]), allowed) for field in dimensions(part)]
    else:
        dims = [int(field.value) for number in OLD_SHAPE for field in found.get(number, []) if field.kind == VARINT]
    if len(dims) > MOST_AXES or max(dims, default=0) > MOST_BYTES:
        raise ValueError(f"{len(dims):,} axes, the longest of {max(dims):,}")
    if math.prod(dims) != len(numbers):
        raise ValueError(f"{len(numbers):,} numbers for the shape {tuple(dims)}")
    return torch.from_numpy(numbers.astype(np.float32)).reshape(dims)


def dimensions(field: ProtobufField) -> list[int]:
    """Of a shape: packed, or one by one."""
    if isinstance(field.value, int):
        return [field.value]
    if len(field.value) > 10 * MOST_AXES:  # a number has ten bytes at most
        raise ValueError(f"a shape of {len(field.value):,} bytes")
    place, found = 0, []
    while place < len(field.value):
        number, place = varint(field.value, place)
        found.append(number)
    return found
