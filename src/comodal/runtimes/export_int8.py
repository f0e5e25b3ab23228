"""Post-training quantization of convolutions to 8 bits: ranges from calibration examples, the loss measured on others.

ONNX Runtime quantizes (weights per filter, activations per tensor, by minimum and maximum); OpenVINO reads the same
file. Only convolutions are quantized, so that the spectrogram stays in float32.
"""

from collections.abc import Iterator, Set
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from comodal.data.sources.file_batches import plan_file_jobs
from comodal.errors import DataError
from comodal.media.audio import stream_audio
from comodal.media.audio_windows import iterate_windows
from comodal.media.image import crop_image_center, read_image, resize_short_side
from comodal.media.storage.suffixes import AUDIO_SUFFIXES, IMAGE_SUFFIXES
from comodal.models.l3net.l3net import L3NetConfig
from comodal.runtimes.export_formats import NetworkFunction, silence_exporter_warnings
from comodal.tasks.evaluation.metrics import check_finite_scores

WINDOWS_PER_FILE, MAX_EXAMPLE_FILES = 4, 64  # windows per file, and files per modality


class QuantizationLoss(NamedTuple):
    """The loss by 8 bits: cosines with the float32 embeddings, and the fraction of unchanged nearest neighbors."""

    mean_cosine: float
    min_cosine: float
    neighbors: float
    examples: float


def read_calibration_examples(folder: Path, config: L3NetConfig) -> dict[str, list[np.ndarray]]:
    """One batch for each file, by the name of the network that takes it; the first windows of an audio file.

    Raises:
        DataError: There are fewer than two files of a kind: one for calibration, one for measuring the loss.
        MediaError: A file cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder of audio files and images")
    paths = {
        kind: [job.source for job in plan_file_jobs([folder], suffixes, None, ("",)).jobs]
        if has_files_with_suffix(folder, suffixes)
        else []
        for kind, suffixes in (("image", frozenset(IMAGE_SUFFIXES)), ("audio", AUDIO_SUFFIXES))
    }
    batches: dict[str, list[np.ndarray]] = {}
    for kind, files in paths.items():
        chosen = files[:: max(1, len(files) // MAX_EXAMPLE_FILES)][:MAX_EXAMPLE_FILES]
        if len(chosen) >= 2:
            batches[kind] = [
                read_network_image(path, config) if kind == "image" else read_first_windows(path, config)
                for path in chosen
            ]
    if not batches:
        counts = " and ".join(f"{len(files)} {kind} files" for kind, files in paths.items())
        raise DataError(f"{folder}: has {counts}; at least two of a kind are required, one of them to measure the loss")
    return batches


def has_files_with_suffix(folder: Path, suffixes: Set[str]) -> bool:
    """Whether a folder has a file with one of these suffixes."""
    return any(path.suffix.lower() in suffixes for path in folder.rglob("*"))


def read_network_image(path: Path, config: L3NetConfig) -> np.ndarray:
    """An image as the network's input: (1, 3, size, size) bytes."""
    size = config.image_size
    square = crop_image_center(resize_short_side(read_image(path), round(size * 8 / 7)), size)
    return np.ascontiguousarray(square.transpose(2, 0, 1)[None])


def read_first_windows(path: Path, config: L3NetConfig) -> Float32[np.ndarray, "windows samples"]:
    """The first windows of an audio file in order; the first is half silent, as in `comodal embed`."""
    samples = round(config.audio_seconds * config.sample_rate)
    batches = iterate_windows(stream_audio(path, config.sample_rate), samples, samples, True, 1)
    return np.concatenate(list(islice(batches, WINDOWS_PER_FILE)))


def write_int8(onnx: Path, path: Path, name: str, batches: list[np.ndarray]) -> None:
    """Writes a network with its convolutions in 8 bits."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[np.ndarray] = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {name: batch}

    prepared = path.with_suffix(".prepared")
    with silence_exporter_warnings():
        quant_pre_process(str(onnx), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(path),
            Reader(),
            op_types_to_quantize=["Conv"],
            per_channel=True,
            reduce_range=True,  # 7 bits: in 8, CPUs without VNNI (AVX2) saturate their 16-bit sums
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    prepared.unlink()


def measure_quantization_loss(
    name: str, batches: list[np.ndarray], float_network: NetworkFunction, int8_network: NetworkFunction
) -> QuantizationLoss:
    """The loss by 8 bits on examples that were not used for calibration."""
    float_vectors, int8_vectors = (
        normalize_rows(np.concatenate([network({name: batch})[0] for batch in batches]))
        for network in (float_network, int8_network)
    )
    check_finite_scores(float_vectors, name)
    check_finite_scores(int8_vectors, f"{name} in 8 bits")
    cosines = (float_vectors * int8_vectors).sum(1)
    is_same = find_nearest_rows(float_vectors) == find_nearest_rows(int8_vectors)
    return QuantizationLoss(float(cosines.mean()), float(cosines.min()), float(is_same.mean()), float(len(cosines)))


def normalize_rows(vectors: Float32[np.ndarray, "rows features"]) -> Float32[np.ndarray, "rows features"]:
    """Vectors of length one; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def find_nearest_rows(vectors: Float32[np.ndarray, "rows features"]) -> np.ndarray:
    """The index of the nearest other row for each row."""
    similarities = vectors @ vectors.T
    np.fill_diagonal(similarities, -np.inf)
    return similarities.argmax(1)
