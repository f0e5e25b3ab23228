"""TensorFlow checkpoints, written byte by byte, and random weights of musicnn's VGG."""

import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def varint(value: int) -> bytes:
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])


def write_bundle(folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """A tensor bundle as tensorflow/core/util/tensor_bundle describes it, with keys that share prefixes."""
    folder.mkdir(parents=True, exist_ok=True)
    data, entries = b"", [(b"", b"\x08\x01")]  # the header: one shard
    for name, value in sorted(tensors.items()):
        raw = value.astype("<f4").tobytes()
        dims = b"".join(b"\x12" + varint(len(d)) + d for d in (b"\x08" + varint(size) for size in value.shape))
        entry = b"\x08\x01\x12" + varint(len(dims)) + dims
        entry += b"\x20" + varint(len(data)) + b"\x28" + varint(len(raw)) + b"\x35" + b"\0" * 4
        entries.append((name.encode(), entry))
        data += raw

    def block(rows: list[tuple[bytes, bytes]]) -> bytes:
        out, last = b"", b""
        for key, value in rows:
            shared = next(
                (i for i, (a, b) in enumerate(zip(key, last, strict=False)) if a != b), min(len(key), len(last))
            )
            out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
            last = key
        return out + struct.pack("<II", 0, 1)

    half = len(entries) // 2
    table, handles = b"", []
    for rows in (entries[:half], entries[half:]):
        body = block(rows)
        handles.append((rows[-1][0], varint(len(table)) + varint(len(body))))
        table += body + b"\0" + b"\0" * 4  # not compressed, checksum
    index = block(handles)
    footer = varint(0) + varint(0) + varint(len(table)) + varint(len(index))
    table += index + b"\0" + b"\0" * 4
    table += footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / ".index").write_bytes(table)
    (folder / ".data-00000-of-00001").write_bytes(data)


def make_musicnn_weights() -> dict[str, np.ndarray]:
    rng, weights = np.random.default_rng(0), {}
    for layer in range(6):
        if layer:
            weights[f"{layer}CNN/kernel"] = rng.normal(0, 0.05, (3, 3, 1 if layer == 1 else 128, 128))
            weights[f"{layer}CNN/bias"] = rng.normal(0, 0.1, 128)
        norm, size = "batch_normalization" + (f"_{layer}" if layer else ""), 128 if layer else 1
        for name in ("gamma", "moving_variance"):
            weights[f"{norm}/{name}"] = rng.uniform(0.5, 1.5, size)
        for name in ("beta", "moving_mean"):
            weights[f"{norm}/{name}"] = rng.normal(0, 0.1, size)
    return {name: value.astype(np.float32) for name, value in weights.items()}
