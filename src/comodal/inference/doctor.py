"""Diagnosis of an embedding file: which network and frontend made it, and its distance from the reference.

OpenL3's weights were trained with kapre 0.1.4 and have since been run with two other frontends; its files do not record
which. Given the audio or image and the weights, all candidates are computed and ranked.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from comodal.console import Table, print_line
from comodal.data.numpy_files import read_npz
from comodal.errors import CheckpointError, DataError
from comodal.inference.embedder import Embedder, EmbedderOptions, load_embedder
from comodal.inference.embedding_rows import embed_image_batches, read_embedder_audio
from comodal.inference.openl3_files import list_weights_folders
from comodal.inference.openl3_images import convert_to_float, crop_center, prepare_squares_as_openl3, rescale_short_side
from comodal.media.image import read_image
from comodal.models.l3net.spectrogram import Frontend
from comodal.text_files import parse_json

MAX_COMPARED_SECONDS = 60.0  # of the audio that is embedded again
MAX_DISTANCE, MAX_BF16_DISTANCE = 1e-4, 2e-2  # relative distance
WEIGHTS_SUFFIXES = (".h5", ".h5.gz", ".pth.tar")
CANDIDATE_FRONTENDS: tuple[Frontend, ...] = ("kapre014", "kapre03", "librosa")
FRONTEND_DESCRIPTIONS = {
    "kapre014": "kapre 0.1.4, as the weights were trained",
    "kapre03": "kapre 0.3, OpenL3's default since 0.4",
    "librosa": "librosa, OpenL3's other front end since 0.4",
}
SIZE_DESCRIPTIONS = {
    512: "sound or pictures, 512 numbers",
    6144: "sound, all 6144 numbers",
    8192: "pictures, all 8192 numbers",
}


@dataclass(frozen=True)
class EmbeddingCandidate:
    """A combination of network and settings, and the distance of its embeddings from the file's."""

    weights: str
    how: str
    faithful: bool
    distance: float
    cosine: float


def diagnose_embedding(
    path: Path, sound: Path | None = None, image: Path | None = None, model: Path | None = None, rows: int = 8
) -> dict[str, Any]:
    """Reports which frontend and network made an embedding, and its distance from the reference.

    Args:
        path: an .npz file of OpenL3 or comodal.
        sound: the audio file that it was made from; some of its windows are embedded with every candidate.
        image: the image file that it was made from.
        model: a weights file, a folder of weights files, or a model folder; by default the OpenL3 files in
            $COMODAL_OPENL3 and in the cache.
        rows: number of embeddings to compare.

    Returns:
        Metadata of the file; with the audio or image also "best", "best.distance", "faithful.distance" and "verdict".

    Raises:
        DataError: it is not an embedding, or does not match the audio or image.
        CheckpointError: there are no weights.

    Examples:
        comodal doctor street.npz
        comodal doctor street.npz --sound street.wav --model openl3_audio_mel256_music.h5
        comodal doctor daisy.npz --image daisy.jpg --model weights/
    """
    if rows < 1 or (sound is not None and image is not None):
        raise ValueError("rows must be at least 1, and a file is made from a sound or from an image")
    arrays = read_embedding(path)
    found = inspect_arrays(arrays)
    candidates: list[EmbeddingCandidate] = []
    if sound is not None:
        candidates = compare_with_audio(path, arrays, sound, list_weights_paths(model), rows)
    elif image is not None:
        candidates = compare_with_image(path, arrays, image, list_weights_paths(model))
    if candidates:
        found |= rank_candidates(candidates)
    elif sound is not None or image is not None:
        raise CheckpointError(f"{model or 'the folders of weights'}: no network gives {found['features']} numbers")
    print_diagnosis(path, found, candidates)
    return found


def read_embedding(path: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """Reads the arrays of a file; nothing is unpickled.

    Raises:
        DataError: there is no such file, it is damaged, or it has no embeddings.
    """
    arrays = read_npz(path)
    vectors = arrays.get("embedding")
    if vectors is None or vectors.ndim != 2 or not vectors.size or vectors.dtype.kind != "f":
        raise DataError(f"{path}: no 'embedding' of rows of floats, only {', '.join(arrays) or 'nothing'}")
    times = arrays.get("timestamps")
    if times is not None and (times.shape != vectors.shape[:1] or times.dtype.kind not in "fiu"):
        raise DataError(f"{path}: {len(vectors)} vectors and timestamps of the shape {times.shape}, {times.dtype}")
    return arrays


def inspect_arrays(arrays: dict[str, Shaped[np.ndarray, "..."]]) -> dict[str, Any]:
    """Reports what can be inferred from the file alone."""
    vectors = arrays["embedding"]
    found: dict[str, Any] = {
        "vectors": len(vectors),
        "features": vectors.shape[1],
        "of": SIZE_DESCRIPTIONS.get(vectors.shape[1], "none of OpenL3's sizes"),
        "type": str(vectors.dtype),
        "mean": float(vectors.mean()),
        "deviation": float(vectors.std()),
        "largest": float(np.abs(vectors).max()),
        "negative": float((vectors < 0).mean()),
        "not_finite": int((~np.isfinite(vectors)).sum()),
    }
    found["cut"] = "before the last ReLU (OpenL3)" if found["negative"] else "after the last ReLU (L3-Net's paper)"
    if "timestamps" not in arrays:
        found["of"] = "pictures; OpenL3 writes no timestamps for them"
    elif len(vectors) > 1:
        steps = np.diff(arrays["timestamps"])
        found["hop_seconds"] = float(np.median(steps))
        found["even"] = bool(np.allclose(steps, steps[0], atol=1e-6))
    found["zero_vectors"] = int((~vectors.any(axis=1)).sum())
    again = (vectors[1:] == vectors[:-1]).all(axis=1) & vectors[1:].any(axis=1)
    found["repeated_vectors"] = int(again.sum())
    if "about" in arrays:
        found["made_by"] = describe_metadata(arrays["about"])
    else:
        found["made_by"] = "OpenL3, or comodal as OpenL3 or with a network of its own: the file does not say it"
    return found


def describe_metadata(about: Shaped[np.ndarray, "..."]) -> str:
    """Describes the metadata of a file written by comodal."""
    try:
        said = parse_json(str(about), "about")
        front_end = FRONTEND_DESCRIPTIONS.get(said["front_end"], said["front_end"])
        network = f"{said['representation']} {said['content']}".strip()
        return f"comodal {said['comodal']}, {network} in {said['precision']}, {front_end}"
    except (DataError, KeyError, TypeError):
        return "comodal, but what it says of itself cannot be read"


def list_weights_paths(model: Path | None) -> list[Path]:
    """Lists the weights files and model folders of a path."""
    folders = list_weights_folders() if model is None else [model]
    found = [
        file
        for folder in folders
        if folder.is_dir() and not (folder / "config.json").is_file() and not (folder / "model").is_dir()
        for file in sorted(folder.iterdir())
        if file.name.endswith(WEIGHTS_SUFFIXES)
    ]
    if not found and model is None:
        raise CheckpointError(f"no weights in {' or '.join(map(str, folders))}; name some with --model")
    return found or folders


def load_candidate_embedders(
    paths: list[Path], features: int, modality: str, front_ends: bool
) -> Iterator[tuple[Path, Embedder]]:
    """Loads networks of the modality with this embedding size; an invalid file is skipped if there are others."""
    for path in paths:
        for front_end in CANDIDATE_FRONTENDS if front_ends else CANDIDATE_FRONTENDS[:1]:
            try:
                embedder = load_embedder(path, EmbedderOptions(precision="fp32", size=features))
                if front_ends and embedder.about:
                    if embedder.about["representation"] == "linear" and front_end != "kapre014":
                        continue  # the same in all three frontends
                    embedder = load_embedder(path, EmbedderOptions(None, front_end, "fp32", features))
                elif front_end != "kapre014":
                    continue
                embedder.grid("sound" if modality == "sound" else "image")
                assert embedder.sound_tower if modality == "sound" else embedder.image_tower
            except (CheckpointError, ValueError) as error:
                if len(paths) == 1:
                    raise CheckpointError(str(error)) from error
                break
            yield path, embedder


def compare_with_audio(
    path: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], sound: Path, paths: list[Path], rows: int
) -> list[EmbeddingCandidate]:
    """Embeds some windows of the audio with every candidate: networks, frontends, centered or not."""
    vectors, times = arrays["embedding"], arrays.get("timestamps")
    if times is None:
        raise DataError(f"{path}: has no timestamps, so it was not made from a sound")
    candidates = []
    samples: Float[np.ndarray, " samples"] | None = None
    for weights, embedder in load_candidate_embedders(paths, vectors.shape[1], "sound", front_ends=True):
        rate = embedder.config.sample_rate
        if samples is None:
            samples = read_first_minute(sound, embedder)
        for centre in (True, False):
            starts = np.rint(times * rate).astype(int) - (rate // 2 if centre else 0)
            heard_whole = len(samples) <= MAX_COMPARED_SECONDS * rate
            inside = [
                row
                for row, start in enumerate(starts)
                if samples[max(start, 0) : start + rate].any() and (heard_whole or start + rate <= len(samples))
            ]
            if not inside:  # silence does not distinguish candidates
                continue
            chosen = [inside[place] for place in np.linspace(0, len(inside) - 1, min(rows, len(inside))).astype(int)]
            windows = np.stack([cut_padded_window(samples, int(starts[row]), rate) for row in chosen])
            centered = "centered" if centre else "not centered"
            how = f"{FRONTEND_DESCRIPTIONS.get(embedder.front_end, 'its own frontend')}, {centered}"
            faithful = embedder.front_end in ("kapre014", "")
            candidates.append(measure_candidate(weights, how, faithful, embedder.sound(windows)[0], vectors[chosen]))
    if samples is not None and not candidates:
        raise DataError(f"{sound}: no sound where {path} has vectors; are they of another file?")
    return candidates


def read_first_minute(sound: Path, embedder: Embedder) -> Float[np.ndarray, " samples"]:
    """Reads the beginning of a recording at the network's sample rate."""
    pieces: list[np.ndarray] = []
    for block in read_embedder_audio(sound, embedder):
        pieces.append(block)
        if sum(map(len, pieces)) > MAX_COMPARED_SECONDS * embedder.config.sample_rate:
            break
    return np.concatenate(pieces)


def cut_padded_window(
    samples: Float[np.ndarray, " samples"], start: int, size: int
) -> Float[np.ndarray, " cut_padded_window"]:
    """Returns one window, zero-padded before the beginning and after the end."""
    cut = samples[max(start, 0) : start + size]
    before = max(0, -start)
    return np.pad(cut, (before, size - before - len(cut)))


def compare_with_image(
    path: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], image: Path, paths: list[Path]
) -> list[EmbeddingCandidate]:
    """Embeds the image with every candidate: networks, pixel ranges, resizing methods."""
    vectors = arrays["embedding"]
    if len(vectors) != 1:
        raise DataError(f"{path}: {len(vectors)} vectors, and a picture gives one")
    picture = read_image(image)
    candidates = []
    for weights, embedder in load_candidate_embedders(paths, vectors.shape[1], "image", front_ends=False):
        ours = next(embed_image_batches([picture], embedder, 1))
        candidates.append(measure_candidate(weights, "[-1, 1], as the weights were trained", True, ours, vectors))
        if embedder.about and min(picture.shape[:2]) >= 224:
            theirs = embedder.pixels(prepare_squares_as_openl3(picture[None]))
            candidates.append(measure_candidate(weights, "OpenL3 0.4.2's own range", False, theirs, vectors))
            scaled = rescale_short_side(picture) if min(picture.shape[:2]) > 256 else convert_to_float(picture)
            pixels = (2 * crop_center(scaled[None]) - 1).astype(np.float32)
            candidates.append(
                measure_candidate(weights, "[-1, 1], scaled as OpenL3 does", False, embedder.pixels(pixels), vectors)
            )
    return candidates


def measure_candidate(
    weights: Path,
    how: str,
    faithful: bool,
    ours: Float[np.ndarray, "rows features"],
    theirs: Float[np.ndarray, "rows features"],
) -> EmbeddingCandidate:
    """Relative distance of the file's embeddings from a candidate's: norm of the difference over the candidate's."""
    norm, other = float(np.linalg.norm(ours)), float(np.linalg.norm(theirs))
    distance = float(np.linalg.norm(ours - theirs)) / max(norm, 1e-12)
    cosine = float((ours * theirs).sum()) / max(norm * other, 1e-12)
    return EmbeddingCandidate(weights.name, how, faithful, distance, cosine)


def rank_candidates(candidates: list[EmbeddingCandidate]) -> dict[str, Any]:
    """Returns the nearest candidate, and the file's distance from the same network with its training frontend."""
    candidates.sort(key=lambda candidate: candidate.distance)
    best = candidates[0]
    faithful = next(other for other in candidates if other.weights == best.weights and other.faithful)
    if best.distance < MAX_DISTANCE:
        verdict = "made so"
    elif best.distance < MAX_BF16_DISTANCE:
        verdict = "made so, up to the rounding of bf16 or another resampler"
    else:
        verdict = "made in none of these ways; the nearest is shown"
    if best.distance < MAX_BF16_DISTANCE:
        verdict += "; faithful to the weights" if best.faithful else "; not as the weights were trained: embed it again"
    return {
        "best": f"{best.weights}: {best.how}",
        "best.distance": best.distance,
        "best.cosine": best.cosine,
        "faithful.distance": faithful.distance,
        "faithful.cosine": faithful.cosine,
        "verdict": verdict,
    }


def print_diagnosis(path: Path, found: dict[str, Any], candidates: list[EmbeddingCandidate]) -> None:
    """Prints the diagnosis, and the candidates by distance."""
    table = Table("", "", header=False)
    for name, value in found.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    print_line(f"{path}:")
    table.show()
    if found["repeated_vectors"]:
        what = "vectors equal the one before them: probably silence, which OpenL3 takes for the loudest noise"
        print_line(f"{found['repeated_vectors']} {what}")
    if candidates:
        listed = Table("weights", "how", "distance", "cosine")
        for candidate in candidates:
            how = candidate.how
            listed.add_row(candidate.weights, how, f"{candidate.distance:.2g}", f"{candidate.cosine:.4f}")
        listed.show()
    else:
        print_line("The sound or picture (--sound, --image) and the weights (--model) tell more.")
