"""L3-Net and OpenL3 for HEAR, the Holistic Evaluation of Audio Representations (NeurIPS 2021 competition).

Implements HEAR's common API: https://hearbenchmark.com/hear-api.html. Give HEAR's tools the module `comodal.hear` and a
model: `python -m heareval.embeddings.runner comodal.hear --model RUN`.
"""

import copy
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import CheckpointError
from comodal.inference.embedder import Embedder, EmbedderOptions, load_embedder

SAMPLE_RATES = (16_000, 22_050, 44_100, 48_000)  # sample rates of HEAR's tasks
TIMESTAMP_HOP_SECONDS = 0.05  # seconds; HEAR requires at most 50 ms, its tolerance for the onset of notes
SCENE_HOP_SECONDS = 0.25
WINDOWS_PER_BATCH = 64  # at a time, which bounds memory


class HearModel(nn.Module):
    """A network with the three attributes that HEAR requires; windows of one second in float32.

    Args:
        embedder: Audio embedder in float32.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__()
        self.network = copy.deepcopy(embedder.model)  # a copy, since `to` must not move a network that others use
        self.about = embedder.about
        self.sample_rate: int = embedder.config.sample_rate
        self.window = round(embedder.config.audio_seconds * self.sample_rate)
        self.scene_embedding_size = self.timestamp_embedding_size = int(
            self.network.embed_audio(torch.zeros(1, self.window)).shape[1]
        )
        self.embedders = {torch.device("cpu"): embedder}

    def forward(
        self, windows: Float[Tensor, "windows samples"]
    ) -> tuple[Float32[Tensor, "windows features"], np.ndarray]:
        """Returns embeddings on the model's device, and which windows are silent."""
        device = self.network.fc1.weight.device
        if device not in self.embedders:
            options = EmbedderOptions(precision="fp32", device=str(device))
            self.embedders[device] = Embedder(self.network, options, self.about)
        embedder = self.embedders[device]
        parts = [embedder.embed_audio(part.cpu().numpy()) for part in windows.float().split(WINDOWS_PER_BATCH)]
        vectors = torch.from_numpy(np.concatenate([vectors for vectors, _ in parts])).to(device)
        return vectors, np.concatenate([silent for _, silent in parts])


def load_model(model_file_path: str = "") -> HearModel:
    """Loads a model for the other two functions.

    Args:
        model_file_path: Run folder or model folder of an L3-Net, or a weights file of OpenL3.

    Raises:
        CheckpointError: There is no model, it is damaged, of another kind, or of a sample rate that HEAR does not use.
    """
    if not model_file_path:
        raise CheckpointError("HEAR: give the run folder, model folder or OpenL3 file (--model)")
    embedder = load_embedder(Path(model_file_path), EmbedderOptions(precision="fp32"))
    embedder.prepare("audio")
    if embedder.config.sample_rate not in SAMPLE_RATES:
        supported_rates = ", ".join(str(sample_rate) for sample_rate in SAMPLE_RATES)
        raise CheckpointError(
            f"{model_file_path}: takes audio at {embedder.config.sample_rate} Hz; HEAR has {supported_rates}"
        )
    return HearModel(embedder)


def get_timestamp_embeddings(
    audio: Float[Tensor, "recordings samples"], model: HearModel
) -> tuple[Float32[Tensor, "recordings timestamps features"], Float32[Tensor, "recordings timestamps"]]:
    """Returns embeddings every 50 ms, and their timestamps in milliseconds.

    Args:
        audio: Recordings of one length at the model's sample rate, between -1 and 1.
        model: What `load_model` returned.

    Returns:
        Window k is centered on its timestamp, 50 k ms, zero-padded at both ends; the last timestamp is
        at most 50 ms from the end.

    Raises:
        ValueError: The audio is empty, or not two-dimensional.
    """
    hop = round(TIMESTAMP_HOP_SECONDS * model.sample_rate)
    vectors = torch.stack([model(windows)[0] for windows in cut_centered_windows(audio, model, hop)])
    milliseconds = torch.arange(vectors.shape[1], device=vectors.device) * (1000 * hop / model.sample_rate)
    return vectors, milliseconds.float().expand(len(vectors), -1)


def get_scene_embeddings(
    audio: Float[Tensor, "recordings samples"], model: HearModel
) -> Float32[Tensor, "recordings features"]:
    """Returns one embedding per recording: the mean over windows every 250 ms, without silent windows.

    Args:
        audio: Recordings of one length at the model's sample rate, between -1 and 1.
        model: What `load_model` returned.

    Raises:
        ValueError: The audio is empty, or not two-dimensional.
    """
    means = []
    for windows in cut_centered_windows(audio, model, round(SCENE_HOP_SECONDS * model.sample_rate)):
        vectors, silent = model(windows)
        is_audible = torch.from_numpy(~silent | silent.all()).to(vectors.device)
        means.append(vectors[is_audible].mean(0))
    return torch.stack(means)


def cut_centered_windows(audio: Tensor, model: HearModel, hop: int) -> list[Float[Tensor, "windows samples"]]:
    """Cuts windows of each recording, the first centered on its first sample."""
    if audio.ndim != 2 or not audio.numel():
        raise ValueError(f"HEAR passes audio of shape (recordings, samples); got {tuple(audio.shape)}")
    around = F.pad(audio, (model.window // 2, model.window - model.window // 2))
    return list(around.unfold(1, model.window, hop))
