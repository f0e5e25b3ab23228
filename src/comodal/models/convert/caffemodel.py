"""Reads the weights of a `.caffemodel` without Caffe, from the protobuf wire format.

NetParameter has layers in field 100 (Caffe before 2014 used field 2, which is not supported). LayerParameter has its
name in 1 and weights in 7. BlobProto has values in 5 (packed or not) or as doubles in 8, and its shape in 7, or as four
integers in 1 to 4 (caffe.proto; protobuf.dev/programming-guides/encoding).
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
LAYER_FIELD, NAME, BLOBS, SHAPE, FLOATS_FIELD, DOUBLES = 100, 1, 7, 7, 5, 8
LEGACY_SHAPE_FIELDS = (1, 2, 3, 4)
MAX_CAFFEMODEL_BYTES = 2**31  # Caffe's own limit
MAX_CAFFE_LAYERS, MAX_CAFFE_FIELDS, MAX_TENSOR_AXES = 10_000, 200_000, 32


class ProtobufField(NamedTuple):
    """One field of a message: its number, wire type, and value (integer or bytes)."""

    number: int
    kind: int
    value: int | memoryview


def read_caffemodel(path: Path) -> dict[str, list[Tensor]]:
    """Reads the weights of each layer that has any, by layer name.

    Raises:
        CheckpointError: It cannot be read, or is not a complete Caffe model.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_CAFFEMODEL_BYTES:
            raise ValueError(f"not a file of at most {MAX_CAFFEMODEL_BYTES:,} bytes")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            layers = parse_layers(bytes(mapped))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path}: not a whole .caffemodel: {error}") from error
    if not layers:
        raise CheckpointError(f"{path}: not a .caffemodel with weights")
    return layers


def parse_layers(data: bytes) -> dict[str, list[Tensor]]:
    """Parses layers with weights."""
    layers: dict[str, list[Tensor]] = {}
    allowed = iter(range(MAX_CAFFE_FIELDS))  # limit for the whole file, since each takes a hundred bytes and some time
    for field in iterate_fields(memoryview(data), allowed):
        if field.number == LAYER_FIELD:
            inside = list(iterate_fields(get_field_bytes(field), allowed))
            name = next((str(get_field_bytes(part), "utf-8") for part in inside if part.number == NAME), "")
            blobs = [parse_blob(get_field_bytes(part), allowed) for part in inside if part.number == BLOBS]
            if name in layers:
                raise ValueError(f"two layers are called {name}")
            if blobs:
                layers[name] = blobs
        if len(layers) > MAX_CAFFE_LAYERS:
            raise ValueError("too many layers")
    return layers


def iterate_fields(data: memoryview, allowed: Iterator[int]) -> Iterator[ProtobufField]:
    """Iterates over the fields of a message, up to a limit."""
    place = 0
    while place < len(data):
        if next(allowed, None) is None:
            raise ValueError(f"more than {MAX_CAFFE_FIELDS:,} fields")
        key, place = parse_varint(data, place)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, place = parse_varint(data, place)
            yield ProtobufField(number, kind, value)
            continue
        if kind == BYTES:
            length, place = parse_varint(data, place)
        elif kind in (EIGHT, FOUR):
            length = 8 if kind == EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {place:,}")
        if place + length > len(data):
            raise ValueError("it ends in the middle of its weights")
        yield ProtobufField(number, kind, data[place : place + length])
        place += length


def parse_varint(data: memoryview, place: int) -> tuple[int, int]:
    """Parses a varint (7 bits per byte); returns it and the next offset."""
    number = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, place
    raise ValueError(f"a number without an end before byte {place:,}")


def get_field_bytes(field: ProtobufField) -> memoryview:
    """The bytes of a length-delimited field."""
    if isinstance(field.value, int):
        raise ValueError(f"field {field.number} is a number")
    return field.value


def parse_blob(data: memoryview, allowed: Iterator[int]) -> Tensor:
    """Parses one tensor."""
    found: dict[int, list[ProtobufField]] = {}
    for field in iterate_fields(data, allowed):
        found.setdefault(field.number, []).append(field)
    kept, code = (FLOATS_FIELD, "<f4") if FLOATS_FIELD in found else (DOUBLES, "<f8")
    numbers = np.frombuffer(b"".join(get_field_bytes(field) for field in found.get(kept, [])), code)
    if SHAPE in found:
        dims = [
            field
            for part in iterate_fields(get_field_bytes(found[SHAPE][0]), allowed)
            for field in parse_dimensions(part)
        ]
    else:
        dims = [
            int(field.value)
            for number in LEGACY_SHAPE_FIELDS
            for field in found.get(number, [])
            if field.kind == VARINT
        ]
    if len(dims) > MAX_TENSOR_AXES or max(dims, default=0) > MAX_CAFFEMODEL_BYTES:
        raise ValueError(f"{len(dims):,} axes, the longest of {max(dims):,}")
    if math.prod(dims) != len(numbers):
        raise ValueError(f"{len(numbers):,} numbers for the shape {tuple(dims)}")
    return torch.from_numpy(numbers.astype(np.float32)).reshape(dims)


def parse_dimensions(field: ProtobufField) -> list[int]:
    """Parses a shape, packed or not."""
    if isinstance(field.value, int):
        return [field.value]
    if len(field.value) > 10 * MAX_TENSOR_AXES:  # a varint has at most ten bytes
        raise ValueError(f"a shape of {len(field.value):,} bytes")
    place, found = 0, []
    while place < len(field.value):
        number, place = parse_varint(field.value, place)
        found.append(number)
    return found
