"""AVE-Net: a joint embedding space of images and audio (Objects that Sound, ECCV 2018), and its variant AVOL-Net.

AVE-Net (section 3) embeds an image and a second of audio as unit vectors of 128 dimensions. Whether the two correspond
depends on their Euclidean distance alone, so the distance also ranks images by audio and audio by images. AVOL-Net
(section 4) localizes the source: it scores the audio with the vector of each position of the image, and takes the
maximum.

The towers are L3-Net's, with a stride of 2 in conv1_1. For small data the image tower can be an ImageNet network, and
the audio tower a network trained on music, or fixed statistics of the spectrogram. None of these is in the paper.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import check_number
from comodal.models.ave_net.musicnn_vgg import (
    MUSICNN_FILTERS,
    MUSICNN_SPECTROGRAM_CONFIG,
    MUSICNN_VGG,
    MusicnnVGG,
)
from comodal.models.efficientnet_lite0 import LITE0, LITE0_CHANNELS, build_untrained_lite0
from comodal.models.l3net.l3net import (
    MAX_IMAGE_SIZE,
    MAX_SECONDS,
    MAX_WIDTH,
    MIN_IMAGE_SIZE,
    MIN_SECONDS,
)
from comodal.models.l3net.network_inputs import check_audio, normalize_image
from comodal.models.l3net.spectrogram import SMALL_SPECTROGRAM_CONFIG, Spectrogram, SpectrogramConfig
from comodal.models.l3net.vgg import VGGTower, init_conv_weights
from comodal.models.pretrained import PretrainedModel

ImageBackbone = Literal["vgg", "efficientnet_lite0"]
AudioBackbone = Literal["vgg", "musicnn_vgg", "spectrogram_statistics"]
Comparison = Literal["distance", "localization"]
MAX_EMBEDDING_DIM = 1 << 12
UNRELATED_DISTANCE = math.sqrt(2)  # of orthogonal unit vectors; the initial threshold of a match

# 257 bands by 200 frames (section 3.1). Whole windows give 199; a half hop of zeros at either end gives 200.
PAPER_AVE_SPECTROGRAM_CONFIG = SpectrogramConfig(zeros_before=120, zeros_after=120)


@dataclass(frozen=True)
class AVENetConfig:
    """The defaults are the paper's AVE-Net.

    Args:
        image_size: Height and width of an image in training; other sizes work too.
        audio_seconds: Duration of the audio.
        spectrogram: Configuration of the spectrogram.
        width: Filters of the first block of a VGG tower.
        first_stride: Stride of conv1_1 of a VGG tower.
        image_backbone: The image tower: vgg, or efficientnet_lite0.
        audio_backbone: The audio tower: vgg; musicnn_vgg, which needs `MUSICNN_SPECTROGRAM_CONFIG`; or
            spectrogram_statistics, the mean and the standard deviation of each band over time, which has no weights.
        embedding_dim: Dimension of the embeddings, and of the layer before them.
        comparison: distance is AVE-Net; localization is AVOL-Net.
        norm_eps: Epsilon of batch normalization.
        norm_momentum: Momentum of batch normalization, in PyTorch's definition.
    """

    image_size: int = 224
    audio_seconds: float = 1.0
    spectrogram: SpectrogramConfig = PAPER_AVE_SPECTROGRAM_CONFIG
    width: int = 64
    first_stride: int = 2
    image_backbone: ImageBackbone = "vgg"
    audio_backbone: AudioBackbone = "vgg"
    embedding_dim: int = 128
    comparison: Comparison = "distance"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        check_number("image_size", self.image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
        check_number("audio_seconds", self.audio_seconds, MIN_SECONDS, MAX_SECONDS)
        check_number("width", self.width, 1, MAX_WIDTH)
        check_number("first_stride", self.first_stride, 1, 4)
        check_number("embedding_dim", self.embedding_dim, 1, MAX_EMBEDDING_DIM)
        check_number("norm_eps", self.norm_eps, 0, 1)
        check_number("norm_momentum", self.norm_momentum, 0, 1)
        if (self.audio_backbone == MUSICNN_VGG) != (self.spectrogram == MUSICNN_SPECTROGRAM_CONFIG):
            raise ValueError("audio_backbone musicnn_vgg and its spectrogram are only used together")
        samples = round(self.audio_seconds * self.sample_rate)
        if samples + self.spectrogram.zeros_before + self.spectrogram.zeros_after < self.spectrogram.window_samples:
            raise ValueError(
                f"audio_seconds ({self.audio_seconds}) are {samples} samples, fewer than one window of the spectrogram "
                f"({self.spectrogram.window_samples})"
            )

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio in Hz."""
        return self.spectrogram.sample_rate


PAPER_AVE_NET_CONFIG = AVENetConfig()
SMALL_AVE_NET_CONFIG = AVENetConfig(
    image_size=64, spectrogram=SMALL_SPECTROGRAM_CONFIG, width=16, first_stride=1
)  # L3-Net's small network


class AVENetOutput(NamedTuple):
    """Logits (mismatch, match), and the embeddings. AVOL-Net has one embedding for each position of an image."""

    logits: Float[Tensor, "batch 2"]
    image_features: Float[Tensor, "batch image_features"]
    audio_features: Float[Tensor, "batch features"]


class SpectrogramStatistics(nn.Module):
    """The mean and the standard deviation of each band over time, as a map of one position."""

    def forward(self, spectrogram: Float[Tensor, "batch 1 bands frames"]) -> Float[Tensor, "batch features 1 1"]:
        std, mean = torch.std_mean(spectrogram[:, 0].float(), dim=-1, correction=0)
        return torch.cat([mean, std], 1)[..., None, None]


class EmbeddingHead(nn.Module):
    """Two fully connected layers with a ReLU between them: fc1 and fc2 of AVE-Net, conv5 and conv6 of AVOL-Net.

    The features of a fixed tower have any scale, so they are batch-normalized first (`input_norm`).
    """

    def __init__(self, features: int, dim: int, input_norm: bool) -> None:
        super().__init__()
        self.input_norm = nn.BatchNorm1d(features, affine=False) if input_norm else nn.Identity()
        self.fc1, self.fc2 = nn.Linear(features, dim), nn.Linear(dim, dim)
        init_conv_weights(self.fc1)
        init_conv_weights(self.fc2)

    def forward(self, features: Float[Tensor, "rows features"]) -> Float[Tensor, "rows dim"]:
        return self.fc2(F.relu(self.fc1(self.input_norm(features))))


class AVENet(PretrainedModel, nn.Module):
    """The network. Images are uint8 and audio is a waveform: normalization and spectrogram are part of the model."""

    def __init__(self, config: AVENetConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrogram = Spectrogram(config.spectrogram)
        norm = (config.norm_eps, config.norm_momentum, config.first_stride)
        channels = 8 * config.width
        self.image_tower: Any
        self.audio_tower: nn.Module
        if config.image_backbone == LITE0:
            self.image_tower, image_channels = build_untrained_lite0(), LITE0_CHANNELS
            self.image_tower._fc = nn.Identity()  # no parameter without a gradient
        else:
            self.image_tower, image_channels = VGGTower(3, config.width, False, (), *norm), channels
        if config.audio_backbone == "vgg":
            self.audio_tower, audio_channels = VGGTower(1, config.width, False, (), *norm), channels
        elif config.audio_backbone == MUSICNN_VGG:
            self.audio_tower, audio_channels = MusicnnVGG(), MUSICNN_FILTERS
        else:
            bands = config.spectrogram.mel_bands or config.spectrogram.n_fft // 2 + 1
            self.audio_tower, audio_channels = SpectrogramStatistics(), 2 * bands
        dim = config.embedding_dim
        self.image_head = EmbeddingHead(image_channels, dim, config.image_backbone != "vgg")
        self.audio_head = EmbeddingHead(audio_channels, dim, config.audio_backbone != "vgg")
        self.decision = nn.Linear(1, 2 if config.comparison == "distance" else 1)  # fc3, or conv7
        self.init_decision()

    def init_decision(self) -> None:
        """A small distance, or a large score, is a match. The paper states the sign alone; the values are ours.

        AVOL-Net's weight is the inverse of the dimension. With a weight of 1, initial scores have a standard deviation
        of about 14, and training does not begin.
        """
        is_distance = self.config.comparison == "distance"
        nn.init.constant_(self.decision.weight, 1.0 if is_distance else 1.0 / self.config.embedding_dim)
        nn.init.zeros_(self.decision.bias)
        if is_distance:
            with torch.no_grad():
                self.decision.weight[1] = -1.0
                self.decision.bias[0], self.decision.bias[1] = -UNRELATED_DISTANCE, UNRELATED_DISTANCE

    def forward(
        self, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
    ) -> AVENetOutput:
        image_features, audio_features = self.compute_image_features(image), self.compute_audio_features(audio)
        return AVENetOutput(self.fuse_pairs(image_features, audio_features), image_features, audio_features)

    def compute_image_map(
        self, image: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The last map of the image tower."""
        pixels = normalize_image(image, self.decision.weight.dtype)
        if self.config.image_backbone == LITE0:
            return self.image_tower.extract_features(pixels * (127.5 / 128) + 0.5 / 128)  # (x - 127) / 128
        return self.image_tower(pixels)

    def compute_image_features(
        self, image: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch image_features"]:
        """The embeddings of images; for AVOL-Net those of all positions, one after another, row by row.

        VGG maps are max-pooled, as in the paper. Those of EfficientNet-Lite0 are averaged, as for its own classifier.
        """
        image_map = self.compute_image_map(image)
        if self.config.comparison == "localization":
            positions = image_map.permute(0, 2, 3, 1)
            return self.image_head(positions.flatten(0, 2)).float().view(image_map.shape[0], -1)
        pooled = image_map.mean((2, 3)) if self.config.image_backbone == LITE0 else image_map.amax((2, 3))
        return F.normalize(self.image_head(pooled).float(), dim=1)

    def compute_audio_features(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch features"]:
        """The embeddings of seconds of audio."""
        config = self.config
        dtype = self.decision.weight.dtype
        audio = check_audio(audio, config.audio_seconds, config.sample_rate, dtype, not self.training)
        embedding = self.audio_head(self.audio_tower(self.spectrogram(audio)).amax((2, 3))).float()
        return embedding if config.comparison == "localization" else F.normalize(embedding, dim=1)

    def fuse_pairs(
        self, image: Float[Tensor, "pairs image_features"], audio: Float[Tensor, "pairs features"]
    ) -> Float[Tensor, "pairs 2"]:
        """The logits (mismatch, match) of the embeddings of pairs."""
        if self.config.comparison == "distance":
            return self.decide(torch.linalg.vector_norm(image - audio, dim=1))
        return self.decide(torch.einsum("npd,nd->np", self.split_positions(image), audio).amax(1))

    def fuse_all_pairs(
        self, image: Float[Tensor, "images image_features"], audio: Float[Tensor, "clips features"]
    ) -> Float[Tensor, "images clips 2"]:
        """The logits of every image with every audio."""
        if self.config.comparison == "distance":
            return self.decide(torch.cdist(image, audio, compute_mode="donot_use_mm_for_euclid_dist"))
        return self.decide(self.compute_best_products(image, audio))

    def score_all_pairs(
        self, image: Float[Tensor, "images image_features"], audio: Float[Tensor, "clips features"]
    ) -> Float[Tensor, "images clips"]:
        """The similarity of every image with every audio, as a contrastive loss takes it: the cosine, or AVOL-Net's
        maximum over the positions, divided by the dimension of the embeddings.
        """
        if self.config.comparison == "distance":
            return image @ audio.T
        return self.compute_best_products(image, audio) / self.config.embedding_dim

    def compute_best_products(
        self, image: Float[Tensor, "images image_features"], audio: Float[Tensor, "clips features"]
    ) -> Float[Tensor, "images clips"]:
        """AVOL-Net's maximum over the positions of every image, of the scalar product with every audio."""
        return torch.einsum("npd,md->npm", self.split_positions(image), audio).amax(1)

    def decide(self, comparison: Float[Tensor, "*pairs"]) -> Float[Tensor, "*pairs 2"]:
        """The logits (mismatch, match) of distances, or of AVOL-Net's maximal scores.

        AVOL-Net's layer gives the logit of match; that of mismatch is 0, so that a softmax is its sigmoid. The layer
        has one input, so it is computed without a matrix product, which autocast would round.
        """
        logits = comparison[..., None] * self.decision.weight[:, 0] + self.decision.bias
        return logits if self.config.comparison == "distance" else F.pad(logits, (1, 0))

    def split_positions(self, image: Float[Tensor, "images image_features"]) -> Float[Tensor, "images positions dim"]:
        """AVOL-Net's embeddings of the positions of images."""
        return image.view(image.shape[0], -1, self.config.embedding_dim)

    def localize(
        self, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
    ) -> Float[Tensor, "batch rows columns"]:
        """The logit of match minus that of mismatch of each position of the image.

        AVOL-Net is trained for it. AVE-Net scores each position as if it were the whole image, as L3-Net does.
        """
        return self.score_positions(self.compute_position_features(image), self.compute_audio_features(audio))

    def compute_position_features(
        self, image: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows columns dim"]:
        """The embedding of each position of the last map of the image tower."""
        image_map = self.compute_image_map(image)
        batch, _, rows, columns = image_map.shape
        positions = self.image_head(image_map.permute(0, 2, 3, 1).flatten(0, 2)).float()
        positions = positions.view(batch, rows, columns, self.config.embedding_dim)
        return F.normalize(positions, dim=3) if self.config.comparison == "distance" else positions

    def score_positions(
        self, positions: Float[Tensor, "batch rows columns dim"], audio: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch rows columns"]:
        """The logit of match minus that of mismatch of each position, with the audio of its image."""
        if self.config.comparison == "distance":
            compared = torch.linalg.vector_norm(positions - audio[:, None, None], dim=3)
        else:
            compared = torch.einsum("nrcd,nd->nrc", positions, audio)
        logits = self.decide(compared)
        return logits[..., 1] - logits[..., 0]
