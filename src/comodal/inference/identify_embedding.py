"""`comodal identify`: which network and frontend made an embedding file, and its distance from the reference.

OpenL3's weights were trained with kapre 0.1.4 and have since been run with two other frontends; its files do not record
which. Given the audio or image and the weights, all candidates are computed and ranked.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

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
    "librosa": "librosa, OpenL3's other frontend since 0.4",
}
SIZE_DESCRIPTIONS = {
    512: "audio or images, 512 features",
    6144: "audio, all 6144 features",
    8192: "images, all 8192 features",
}
UNKNOWN_CREATOR = "unknown (no metadata): OpenL3, comodal --as-openl3, or a comodal model"


@dataclass(frozen=True)
class EmbeddingCandidate:
    """A combination of network and settings, and the distance of its embeddings from the file's."""

    weights: str
    settings: str
    is_faithful: bool
    distance: float
    cosine: float


@dataclass(frozen=True)
class CandidateRanking:
    """The comparison of a file with candidates.

    Args:
        candidates: All candidates, the nearest first.
        best: The nearest candidate.
        faithful: The network of the nearest candidate with its training frontend.
        conclusion: Whether the nearest matches, and whether it is faithful to the weights.
    """

    candidates: tuple[EmbeddingCandidate, ...]
    best: EmbeddingCandidate
    faithful: EmbeddingCandidate
    conclusion: str


@dataclass(frozen=True)
class EmbeddingDiagnosis:
    """What is inferred from an embedding file.

    Args:
        vectors: Number of embeddings.
        features: Features of each.
        content: What OpenL3 embeds with this number of features.
        dtype: NumPy type of the embeddings.
        mean: Mean of all values.
        std: Standard deviation of all values.
        max_abs: Largest absolute value.
        negative: Fraction of negative values.
        not_finite: Number of NaN and infinite values.
        cut: Whether the network was cut before or after its last ReLU.
        hop_seconds: Median distance of the timestamps; None without two of them.
        has_even_hops: Whether all timestamps have this distance; None without two of them.
        zero_vectors: Number of embeddings that are zero.
        repeated_vectors: Number of other embeddings that equal their predecessor.
        created_by: The metadata of the file in words.
        ranking: The comparison with candidates; None without the audio or image.
    """

    vectors: int
    features: int
    content: str
    dtype: str
    mean: float
    std: float
    max_abs: float
    negative: float
    not_finite: int
    cut: str
    hop_seconds: float | None
    has_even_hops: bool | None
    zero_vectors: int
    repeated_vectors: int
    created_by: str
    ranking: CandidateRanking | None = None


def identify_embedding(
    path: Path, audio: Path | None = None, image: Path | None = None, model: Path | None = None, rows: int = 8
) -> EmbeddingDiagnosis:
    """Reports which frontend and network made an embedding, and its distance from the reference.

    Args:
        path: an .npz file of OpenL3 or comodal.
        audio: the audio file that was embedded; some of its windows are embedded with every candidate.
        image: the image file that was embedded.
        model: a weights file, a folder of weights files, or a model folder; by default the OpenL3 files in
            $COMODAL_OPENL3 and in the cache.
        rows: number of embeddings to compare.

    Returns:
        What the file shows; with the audio or image also the ranked candidates.

    Raises:
        DataError: it is not an embedding, or does not match the audio or image.
        CheckpointError: there are no weights.

    Examples:
        comodal identify street.npz
        comodal identify street.npz --audio street.wav --model openl3_audio_mel256_music.h5
        comodal identify daisy.npz --image daisy.jpg --model weights/
    """
    if rows < 1 or (audio is not None and image is not None):
        raise ValueError("rows must be at least 1; give --audio or --image, not both")
    arrays = read_embedding(path)
    diagnosis = inspect_arrays(arrays)
    candidates: list[EmbeddingCandidate] = []
    if audio is not None:
        candidates = compare_with_audio(path, arrays, audio, list_weights_paths(model), rows)
    elif image is not None:
        candidates = compare_with_image(path, arrays, image, list_weights_paths(model))
    if candidates:
        diagnosis = replace(diagnosis, ranking=rank_candidates(candidates))
    elif audio is not None or image is not None:
        raise CheckpointError(f"{model or 'the folders of weights'}: no network has {diagnosis.features} features")
    print_diagnosis(path, diagnosis)
    return diagnosis


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


def inspect_arrays(arrays: dict[str, Shaped[np.ndarray, "..."]]) -> EmbeddingDiagnosis:
    """Reports what can be inferred from the file alone."""
    vectors = arrays["embedding"]
    negative = float((vectors < 0).mean())
    content, hop_seconds, has_even_hops = SIZE_DESCRIPTIONS.get(vectors.shape[1], "none of OpenL3's sizes"), None, None
    if "timestamps" not in arrays:
        content = "images; OpenL3 writes no timestamps for them"
    elif len(vectors) > 1:
        steps = np.diff(arrays["timestamps"])
        hop_seconds, has_even_hops = float(np.median(steps)), bool(np.allclose(steps, steps[0], atol=1e-6))
    is_repeated = (vectors[1:] == vectors[:-1]).all(axis=1) & vectors[1:].any(axis=1)
    return EmbeddingDiagnosis(
        vectors=len(vectors),
        features=vectors.shape[1],
        content=content,
        dtype=str(vectors.dtype),
        mean=float(vectors.mean()),
        std=float(vectors.std()),
        max_abs=float(np.abs(vectors).max()),
        negative=negative,
        not_finite=int((~np.isfinite(vectors)).sum()),
        cut="before the last ReLU (OpenL3)" if negative else "after the last ReLU (L3-Net's paper)",
        hop_seconds=hop_seconds,
        has_even_hops=has_even_hops,
        zero_vectors=int((~vectors.any(axis=1)).sum()),
        repeated_vectors=int(is_repeated.sum()),
        created_by=describe_metadata(arrays["about"]) if "about" in arrays else UNKNOWN_CREATOR,
    )


def describe_metadata(about: Shaped[np.ndarray, "..."]) -> str:
    """Describes the metadata of a file written by comodal."""
    try:
        metadata = parse_json(str(about), "about")
        frontend = FRONTEND_DESCRIPTIONS.get(metadata["frontend"], metadata["frontend"])
        network = f"{metadata['representation']} {metadata['content']}".strip()
        return f"comodal {metadata['comodal']}, {network} in {metadata['precision']}, {frontend}"
    except (DataError, KeyError, TypeError):
        return "comodal, with unreadable metadata"


def list_weights_paths(model: Path | None) -> list[Path]:
    """Lists the weights files and model folders of a path."""
    folders = list_weights_folders() if model is None else [model]
    paths = [
        file
        for folder in folders
        if folder.is_dir() and not (folder / "config.json").is_file() and not (folder / "model").is_dir()
        for file in sorted(folder.iterdir())
        if file.name.endswith(WEIGHTS_SUFFIXES)
    ]
    if not paths and model is None:
        raise CheckpointError(f"no weights in {' or '.join(map(str, folders))}; pass a file or folder with --model")
    return paths or folders


def load_candidate_embedders(
    paths: list[Path], features: int, modality: str, has_frontends: bool
) -> Iterator[tuple[Path, Embedder]]:
    """Loads networks of the modality with this embedding size; an invalid file is skipped if there are others."""
    for path in paths:
        for frontend in CANDIDATE_FRONTENDS if has_frontends else CANDIDATE_FRONTENDS[:1]:
            try:
                embedder = load_embedder(path, EmbedderOptions(precision="fp32", size=features))
                if has_frontends and embedder.about:
                    if embedder.about["representation"] == "linear" and frontend != "kapre014":
                        continue  # the same in all three frontends
                    embedder = load_embedder(path, EmbedderOptions(None, frontend, "fp32", features))
                elif frontend != "kapre014":
                    continue
                embedder.get_grid("audio" if modality == "audio" else "image")
                assert embedder.audio_tower if modality == "audio" else embedder.image_tower
            except (CheckpointError, ValueError) as error:
                if len(paths) == 1:
                    raise CheckpointError(str(error)) from error
                break
            yield path, embedder


def compare_with_audio(
    path: Path, arrays: dict[str, Shaped[np.ndarray, "..."]], audio: Path, paths: list[Path], rows: int
) -> list[EmbeddingCandidate]:
    """Embeds some windows of the audio with every candidate: networks, frontends, centered or not."""
    vectors, times = arrays["embedding"], arrays.get("timestamps")
    if times is None:
        raise DataError(f"{path}: has no timestamps, so it was not computed from audio")
    candidates = []
    samples: Float[np.ndarray, " samples"] | None = None
    for weights, embedder in load_candidate_embedders(paths, vectors.shape[1], "audio", has_frontends=True):
        sample_rate = embedder.config.sample_rate
        if samples is None:
            samples = read_first_minute(audio, embedder)
        for center in (True, False):
            starts = np.rint(times * sample_rate).astype(int) - (sample_rate // 2 if center else 0)
            is_complete = len(samples) <= MAX_COMPARED_SECONDS * sample_rate
            inside = [
                row
                for row, start in enumerate(starts)
                if samples[max(start, 0) : start + sample_rate].any()
                and (is_complete or start + sample_rate <= len(samples))
            ]
            if not inside:  # silence does not distinguish candidates
                continue
            selected_rows = [
                inside[index] for index in np.linspace(0, len(inside) - 1, min(rows, len(inside))).astype(int)
            ]
            windows = np.stack([cut_padded_window(samples, int(starts[row]), sample_rate) for row in selected_rows])
            centered = "centered" if center else "not centered"
            settings = f"{FRONTEND_DESCRIPTIONS.get(embedder.frontend, 'its own frontend')}, {centered}"
            is_faithful = embedder.frontend in ("kapre014", "")
            candidates.append(
                measure_candidate(
                    weights, settings, is_faithful, embedder.embed_audio(windows)[0], vectors[selected_rows]
                )
            )
    if samples is not None and not candidates:
        raise DataError(
            f"{audio}: silent where {path} has vectors; check that this is the audio file that was embedded"
        )
    return candidates


def read_first_minute(audio_path: Path, embedder: Embedder) -> Float[np.ndarray, " samples"]:
    """Reads the beginning of a recording at the network's sample rate."""
    blocks: list[np.ndarray] = []
    for block in read_embedder_audio(audio_path, embedder):
        blocks.append(block)
        if sum(map(len, blocks)) > MAX_COMPARED_SECONDS * embedder.config.sample_rate:
            break
    return np.concatenate(blocks)


def cut_padded_window(samples: Float[np.ndarray, " samples"], start: int, size: int) -> Float[np.ndarray, " size"]:
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
        raise DataError(f"{path}: {len(vectors)} vectors, but an image has one")
    image_array = read_image(image)
    candidates = []
    for weights, embedder in load_candidate_embedders(paths, vectors.shape[1], "image", has_frontends=False):
        embedding = next(embed_image_batches([image_array], embedder, 1))
        candidates.append(measure_candidate(weights, "[-1, 1], as the weights were trained", True, embedding, vectors))
        if embedder.about and min(image_array.shape[:2]) >= 224:
            openl3_embedding = embedder.embed_pixels(prepare_squares_as_openl3(image_array[None]))
            candidates.append(
                measure_candidate(weights, "the input range of OpenL3 0.4.2", False, openl3_embedding, vectors)
            )
            scaled = (
                rescale_short_side(image_array) if min(image_array.shape[:2]) > 256 else convert_to_float(image_array)
            )
            pixels = (2 * crop_center(scaled[None]) - 1).astype(np.float32)
            candidates.append(
                measure_candidate(
                    weights, "[-1, 1], scaled as OpenL3 does", False, embedder.embed_pixels(pixels), vectors
                )
            )
    return candidates


def measure_candidate(
    weights: Path,
    settings: str,
    is_faithful: bool,
    computed: Float[np.ndarray, "rows features"],
    stored: Float[np.ndarray, "rows features"],
) -> EmbeddingCandidate:
    """Relative distance of the file's embeddings from a candidate's: norm of the difference over the candidate's."""
    computed_norm, stored_norm = float(np.linalg.norm(computed)), float(np.linalg.norm(stored))
    distance = float(np.linalg.norm(computed - stored)) / max(computed_norm, 1e-12)
    cosine = float((computed * stored).sum()) / max(computed_norm * stored_norm, 1e-12)
    return EmbeddingCandidate(weights.name, settings, is_faithful, distance, cosine)


def rank_candidates(candidates: list[EmbeddingCandidate]) -> CandidateRanking:
    """Finds the nearest candidate, and the same network with its training frontend."""
    ranked = sorted(candidates, key=lambda candidate: candidate.distance)
    best = ranked[0]
    faithful = next(entry for entry in ranked if entry.weights == best.weights and entry.is_faithful)
    if best.distance < MAX_DISTANCE:
        conclusion = "matches"
    elif best.distance < MAX_BF16_DISTANCE:
        conclusion = "matches up to the rounding of bf16 or another resampler"
    else:
        conclusion = "no candidate matches; the nearest is shown"
    if best.distance < MAX_BF16_DISTANCE:
        conclusion += "; faithful to the weights" if best.is_faithful else "; not the training frontend: embed it again"
    return CandidateRanking(tuple(ranked), best, faithful, conclusion)


def print_diagnosis(path: Path, diagnosis: EmbeddingDiagnosis) -> None:
    """Prints the diagnosis, and the candidates by distance."""
    ranking = diagnosis.ranking
    values = {name: value for name, value in asdict(replace(diagnosis, ranking=None)).items() if value is not None}
    if ranking is not None:
        values |= {
            "best": f"{ranking.best.weights}: {ranking.best.settings}",
            "best.distance": ranking.best.distance,
            "best.cosine": ranking.best.cosine,
            "faithful.distance": ranking.faithful.distance,
            "faithful.cosine": ranking.faithful.cosine,
            "conclusion": ranking.conclusion,
        }
    table = Table("", "", header=False)
    for name, value in values.items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    print_line(f"{path}:")
    table.show()
    if diagnosis.repeated_vectors:
        message = "vectors equal their predecessor: probably silence, which OpenL3 amplifies to full level"
        print_line(f"{diagnosis.repeated_vectors} {message}")
    if ranking is not None:
        listed = Table("weights", "settings", "distance", "cosine")
        for candidate in ranking.candidates:
            listed.add_row(
                candidate.weights, candidate.settings, f"{candidate.distance:.2g}", f"{candidate.cosine:.4f}"
            )
        listed.show()
    else:
        print_line("Pass the audio or the image (--audio, --image) and the weights (--model) to compare candidates.")
