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

    field_number: int
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
        raise CheckpointError(f"{path}: an incomplete or damaged .caffemodel: {error}") from error
    if not layers:
        raise CheckpointError(f"{path}: not a .caffemodel with weights")
    return layers


def parse_layers(data: bytes) -> dict[str, list[Tensor]]:
    """Parses layers with weights."""
    layers: dict[str, list[Tensor]] = {}
    budget = iter(range(MAX_CAFFE_FIELDS))  # limit for the whole file, since each takes a hundred bytes and some time
    for field in iterate_fields(memoryview(data), budget):
        if field.field_number == LAYER_FIELD:
            inside = list(iterate_fields(get_field_bytes(field), budget))
            name = next((str(get_field_bytes(part), "utf-8") for part in inside if part.field_number == NAME), "")
            blobs = [parse_blob(get_field_bytes(part), budget) for part in inside if part.field_number == BLOBS]
            if name in layers:
                raise ValueError(f"two layers are called {name}")
            if blobs:
                layers[name] = blobs
        if len(layers) > MAX_CAFFE_LAYERS:
            raise ValueError("too many layers")
    return layers


def iterate_fields(data: memoryview, budget: Iterator[int]) -> Iterator[ProtobufField]:
    """Iterates over the fields of a message, up to a limit."""
    offset = 0
    while offset < len(data):
        if next(budget, None) is None:
            raise ValueError(f"more than {MAX_CAFFE_FIELDS:,} fields")
        key, offset = parse_varint(data, offset)
        field_number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, offset = parse_varint(data, offset)
            yield ProtobufField(field_number, kind, value)
            continue
        if kind == BYTES:
            length, offset = parse_varint(data, offset)
        elif kind in (EIGHT, FOUR):
            length = 8 if kind == EIGHT else 4
        else:
            raise ValueError(f"a field of kind {kind} at byte {offset:,}")
        if offset + length > len(data):
            raise ValueError("it ends in the middle of its weights")
        yield ProtobufField(field_number, kind, data[offset : offset + length])
        offset += length


def parse_varint(data: memoryview, offset: int) -> tuple[int, int]:
    """Parses a varint (7 bits per byte); returns it and the next offset."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[offset]
        offset += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, offset
    raise ValueError(f"an unterminated varint before byte {offset:,}")


def get_field_bytes(field: ProtobufField) -> memoryview:
    """The bytes of a length-delimited field."""
    if isinstance(field.value, int):
        raise ValueError(f"field {field.field_number} is an integer, not bytes")
    return field.value


def parse_blob(data: memoryview, budget: Iterator[int]) -> Tensor:
    """Parses one tensor."""
    fields: dict[int, list[ProtobufField]] = {}
    for field in iterate_fields(data, budget):
        fields.setdefault(field.field_number, []).append(field)
    data_field, code = (FLOATS_FIELD, "<f4") if FLOATS_FIELD in fields else (DOUBLES, "<f8")
    values = np.frombuffer(b"".join(get_field_bytes(field) for field in fields.get(data_field, [])), code)
    if SHAPE in fields:
        dims = [
            field
            for part in iterate_fields(get_field_bytes(fields[SHAPE][0]), budget)
            for field in parse_dimensions(part)
        ]
    else:
        dims = [
            int(field.value)
            for field_number in LEGACY_SHAPE_FIELDS
            for field in fields.get(field_number, [])
            if field.kind == VARINT
        ]
    if len(dims) > MAX_TENSOR_AXES or max(dims, default=0) > MAX_CAFFEMODEL_BYTES:
        raise ValueError(f"{len(dims):,} axes, the longest of {max(dims):,}")
    if math.prod(dims) != len(values):
        raise ValueError(f"{len(values):,} values for the shape {tuple(dims)}")
    return torch.from_numpy(values.astype(np.float32)).reshape(dims)


def parse_dimensions(field: ProtobufField) -> list[int]:
    """Parses a shape, packed or not."""
    if isinstance(field.value, int):
        return [field.value]
    if len(field.value) > 10 * MAX_TENSOR_AXES:  # a varint has at most ten bytes
        raise ValueError(f"a shape of {len(field.value):,} bytes")
    offset, dimensions = 0, []
    while offset < len(field.value):
        dimension, offset = parse_varint(field.value, offset)
        dimensions.append(dimension)
    return dimensions
