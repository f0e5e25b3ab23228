"""What a model embeds into vectors that can be compared: texts, images, audio.

| model | queries | files searched, the first by default |
|---|---|---|
| AVE-Net | image, audio | the other modality, or the same |
| dual encoder | text, image | images and frames of videos |
| L3-Net, OpenL3 | image, audio | the same modality: its two embeddings have no common space |

The similarity is the cosine. AVE-Net's distance is a function of it.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Float32
from torch import nn

from comodal.console import print_line
from comodal.errors import CheckpointError
from comodal.inference.audio_visual import AudioVisualPipeline
from comodal.inference.ave_net_pipeline import JointEmbeddingPipeline
from comodal.inference.embedding_rows import ImageArray, read_embedder_audio
from comodal.inference.embedding_search.search_results import ItemKind
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline
from comodal.media.audio import resample_audio, stream_audio
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import compute_weights_checksum

QueryKind = Literal["text", "image", "audio"]
Vectors = Float32[np.ndarray, "rows dim"]
SPACE_FORMAT = 1  # of what vectors depend on besides the model
MIN_NORM = 1e-12


@dataclass(frozen=True)
class EmbeddingSpace:
    """The embedding functions of a model. Those that it lacks are None.

    Args:
        name: Of the model, for messages.
        mark: A hash of everything that vectors depend on.
        targets: For each kind of query what it is compared with, the default first.
        dims: Dimensions of the vectors of images and of audio.
        batch_size: Images or windows at a time.
        embed_text: Vector of a text.
        embed_images: Vectors of images of any size.
        embed_windows: Vectors of windows at `sample_rate`.
        read_audio: The audio of a file at `sample_rate`, in blocks.
        resample: Samples in memory and their sample rate, to `sample_rate`.
        sample_rate: In Hz.
        window_seconds: Length of a window, and the time between frames of a video.
    """

    name: str
    mark: str
    targets: Mapping[QueryKind, tuple[ItemKind, ...]]
    dims: Mapping[ItemKind, int]
    batch_size: int
    embed_text: Callable[[str], Float32[np.ndarray, "dim"]] | None = None
    embed_images: Callable[[Sequence[ImageArray]], Vectors] | None = None
    embed_windows: Callable[[Float32[np.ndarray, "windows samples"]], Vectors] | None = None
    read_audio: Callable[[Path], Iterator[Float[np.ndarray, " samples"]]] | None = None
    resample: Callable[[Float32[np.ndarray, " samples"], float], Float[np.ndarray, " samples"]] | None = None
    sample_rate: int = 0
    window_seconds: float = 1.0


def make_embedding_space(
    pipeline: AudioVisualPipeline | JointEmbeddingPipeline | DualEncoderPipeline,
) -> EmbeddingSpace:
    """The embedding functions of a pipeline.

    Raises:
        CheckpointError: It has no vector of a whole image.
    """
    if isinstance(pipeline, JointEmbeddingPipeline):
        return make_ave_net_space(pipeline)
    if isinstance(pipeline, DualEncoderPipeline):
        return make_dual_encoder_space(pipeline)
    return make_l3net_space(pipeline)


def make_ave_net_space(pipeline: JointEmbeddingPipeline) -> EmbeddingSpace:
    """Images and audio in one space.

    Raises:
        CheckpointError: It is an AVOL-Net.
    """
    model, config = pipeline.model, pipeline.model.config
    if config.comparison != "distance":
        raise CheckpointError(
            "AVOL-Net has a vector for each position of an image and none for the whole image: search with an AVE-Net "
            "(--comparison distance)"
        )
    return EmbeddingSpace(
        name="AVE-Net",
        mark=hash_model(model, asdict(config)),
        targets={"image": ("audio", "image"), "audio": ("image", "audio")},
        dims={"image": config.embedding_dim, "audio": config.embedding_dim},
        batch_size=pipeline.compute.batch_size,
        embed_images=lambda images: normalize_vectors(pipeline.embed_image(list(images))),
        embed_windows=lambda windows: normalize_vectors(pipeline.embed_windows(windows)),
        read_audio=lambda path: stream_audio(path, config.sample_rate),
        resample=lambda samples, rate: resample_audio(samples, round(rate), config.sample_rate),
        sample_rate=config.sample_rate,
        window_seconds=config.audio_seconds,
    )


def make_dual_encoder_space(pipeline: DualEncoderPipeline) -> EmbeddingSpace:
    """Texts and images in one space."""
    config = pipeline.model.config

    def embed_text(text: str) -> Float32[np.ndarray, "dim"]:
        check_query_text(text, pipeline.tokenizer, pipeline.folder)
        vector: Float32[np.ndarray, dim] = pipeline.embed_text(text)[0]
        return vector

    inputs = [asdict(config), pipeline.tokenizer.to_json().decode(), pipeline.regions.get("provenance")]
    return EmbeddingSpace(
        name="a dual encoder",
        mark=hash_model(pipeline.model, inputs),
        targets={"text": ("image",), "image": ("image",)},
        dims={"image": config.embedding_dim},
        batch_size=pipeline.compute.batch_size,
        embed_text=embed_text,
        embed_images=lambda images: pipeline.embed_image(list(images)),
    )


def make_l3net_space(pipeline: AudioVisualPipeline) -> EmbeddingSpace:
    """Images in one space and audio in another: the maximum of each feature over all positions."""
    embedder, config = pipeline.embedder, pipeline.embedder.config
    channels = 8 * config.width

    def pool(vectors: Float32[np.ndarray, "rows features"]) -> Vectors:
        return normalize_vectors(vectors.reshape(len(vectors), -1, channels).max(1))

    inputs = [asdict(config), embedder.frontend]
    return EmbeddingSpace(
        name="an L3-Net",
        mark=hash_model(pipeline.model, inputs),
        targets={"image": ("image",), "audio": ("audio",)},
        dims={"image": channels, "audio": channels},
        batch_size=embedder.batch_size,
        embed_images=lambda images: pool(pipeline.embed_image(list(images))),
        embed_windows=lambda windows: pool(embedder.embed_audio(windows)[0]),
        read_audio=lambda path: read_embedder_audio(path, embedder),
        resample=embedder.resample,
        sample_rate=config.sample_rate,
        window_seconds=config.audio_seconds,
    )


def normalize_vectors(vectors: Vectors) -> Vectors:
    """Vectors of length one; zero vectors (of silence) stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), MIN_NORM)


def hash_model(model: nn.Module, inputs: Any) -> str:
    """A hash of the weights and of the settings that vectors depend on."""
    weights = compute_weights_checksum({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    parts = json.dumps([SPACE_FORMAT, type(model).__name__, weights, inputs], sort_keys=True, default=str)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


def check_query_text(text: str, tokenizer: WordPieceTokenizer, model: Path) -> None:
    """Checks that the query has words, and prints a warning if the vocabulary has none of them."""
    token_ids = tokenizer.encode(text)[1:-1]
    if not token_ids:
        raise ValueError("the text is empty: describe the images to find")
    if all(token_id == tokenizer.unknown_id for token_id in token_ids):
        print_line(
            f"warning: {model} has none of the words of {text!r} in its vocabulary, so the ranking is meaningless",
            stderr=True,
        )
