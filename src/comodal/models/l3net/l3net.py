"""L3-Net: a network for audio-visual correspondence (Look, Listen and Learn, ICCV 2017, section 3.1).

Two towers without shared weights, 512 features each, and a fusion network of two fully connected layers. The variants
of l3embedding and OpenL3, and small ones for two CPU cores, are the same class with another L3NetConfig.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import check_number
from comodal.models.l3net import spectrogram as front_ends
from comodal.models.l3net.network_inputs import check_audio, normalize_image
from comodal.models.l3net.spectrogram import Frontend, Representation, Spectrogram, SpectrogramConfig
from comodal.models.l3net.vgg import VGG_LAYER_NAMES, VGGTower, init_conv_weights
from comodal.models.pretrained import PretrainedModel

IMAGE_GRID = (4, 4)  # 4 x 4 x 512 = 8192 features (L3-Net, section 4.3)
AUDIO_GRID = (4, 3)  # 4 x 3 x 512 = 6144 features (section 4.2)
MIN_IMAGE_SIZE, MAX_IMAGE_SIZE = 16, 4096
MIN_SECONDS, MAX_SECONDS = 0.001, 60
MAX_WIDTH = 1024  # 2.4 billion parameters
MAX_FUSION = 1 << 16


@dataclass(frozen=True)
class L3NetConfig:
    """The defaults are the paper's: 9,508,738 trainable parameters.

    Args:
        image_size: Height and width of an image in training; other sizes work too.
        audio_seconds: Duration of the audio.
        spectrogram: Configuration of the spectrogram.
        width: Filters of the first block; the paper's 512 features are 8 x 64.
        fusion: Units of the first fully connected layer.
        input_norm: Batch normalization of pixels and spectrogram (l3embedding's later models, OpenL3).
        relu_before_norm: Layers of the image tower with the ReLU before the batch normalization.
        embedding: Layer that embeddings pool: conv4_2 after its ReLU (the paper), or before its norm (OpenL3).
        norm_eps: Epsilon of batch normalization.
        norm_momentum: Momentum of batch normalization, in PyTorch's definition.
    """

    image_size: int = 224
    audio_seconds: float = 1.0
    spectrogram: SpectrogramConfig = front_ends.PAPER_SPECTROGRAM_CONFIG
    width: int = 64
    fusion: int = 128
    input_norm: bool = False
    relu_before_norm: tuple[str, ...] = ()
    embedding: Literal["relu", "convolution"] = "relu"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1

    def __post_init__(self) -> None:
        if unknown := set(self.relu_before_norm) - set(VGG_LAYER_NAMES):
            raise ValueError(
                f"unknown layers in relu_before_norm: {sorted(unknown)}; the layers are {list(VGG_LAYER_NAMES)}"
            )
        check_number("image_size", self.image_size, MIN_IMAGE_SIZE, MAX_IMAGE_SIZE)
        check_number("audio_seconds", self.audio_seconds, MIN_SECONDS, MAX_SECONDS)
        samples = round(self.audio_seconds * self.sample_rate)
        if samples + self.spectrogram.zeros_before + self.spectrogram.zeros_after < self.spectrogram.window_samples:
            raise ValueError(
                f"audio_seconds ({self.audio_seconds}) are {samples} samples, fewer than one window of the spectrogram "
                f"({self.spectrogram.window_samples})"
            )
        check_number("width", self.width, 1, MAX_WIDTH)
        check_number("fusion", self.fusion, 1, MAX_FUSION)
        check_number("norm_eps", self.norm_eps, 0, 1)
        check_number("norm_momentum", self.norm_momentum, 0, 1)

    @property
    def sample_rate(self) -> int:
        """Sample rate of the audio in Hz."""
        return self.spectrogram.sample_rate


PAPER_L3NET_CONFIG = L3NetConfig()

# Keras' batch normalization (eps 1e-3, momentum 0.99); conv -> ReLU -> norm in conv1_2 (l3embedding, vision_model.py).
L3EMBEDDING_L3NET_CONFIG = L3NetConfig(
    spectrogram=front_ends.L3EMBEDDING_SPECTROGRAM_CONFIG,
    relu_before_norm=("conv1_2",),
    norm_eps=1e-3,
    norm_momentum=0.01,
)


def make_openl3_config(representation: Representation, frontend: Frontend = "kapre014") -> L3NetConfig:
    """Configurations of OpenL3 and of l3embedding's later models (`cnn_L3_kapredbinputbn`, `melspec1`, `melspec2`)."""
    return L3NetConfig(
        spectrogram=front_ends.make_openl3_spectrogram_config(representation, frontend),
        input_norm=True,
        relu_before_norm=("conv1_2",),
        embedding="convolution",
        norm_eps=1e-3,
        norm_momentum=0.01,
    )


def make_small_l3net_config(width: int = 16, image_size: int = 64) -> L3NetConfig:
    """A network that trains on two CPU cores: fewer filters, smaller images, 64 mel bands by 32 frames."""
    return L3NetConfig(image_size=image_size, spectrogram=front_ends.SMALL_SPECTROGRAM_CONFIG, width=width)


class L3NetOutput(NamedTuple):
    """Logits (mismatch, match), and the features of each tower after the last pooling."""

    logits: Float[Tensor, "batch 2"]
    image_features: Float[Tensor, "batch features"]
    audio_features: Float[Tensor, "batch features"]


def max_pool_to_grid(
    feature_map: Float[Tensor, "batch channels rows columns"], grid: tuple[int, int]
) -> Float[Tensor, "batch features"]:
    """Max-pools a map to a grid no finer than the map, flattened in the order (row, column, channel)."""
    rows, columns = feature_map.shape[2:]
    cells = F.adaptive_max_pool2d(feature_map, (min(grid[0], rows), min(grid[1], columns)))
    return cells.permute(0, 2, 3, 1).flatten(1)


class L3Net(PretrainedModel, nn.Module):
    """The network. Images are uint8 and audio is a waveform: normalization and spectrogram are part of the model."""

    def __init__(self, config: L3NetConfig) -> None:
        super().__init__()
        self.config = config
        self.spectrogram = Spectrogram(config.spectrogram)
        norm = (config.norm_eps, config.norm_momentum)
        self.image_tower = VGGTower(3, config.width, config.input_norm, config.relu_before_norm, *norm)
        self.audio_tower = VGGTower(1, config.width, config.input_norm, (), *norm)
        self.fc1 = nn.Linear(2 * 8 * config.width, config.fusion)
        self.fc2 = nn.Linear(config.fusion, 2)
        init_conv_weights(self.fc1)
        init_conv_weights(self.fc2)

    def forward(
        self, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
    ) -> L3NetOutput:
        image_features, audio_features = self.compute_image_features(image), self.compute_audio_features(audio)
        return L3NetOutput(self.fuse_pairs(image_features, audio_features), image_features, audio_features)

    def compute_image_features(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch features"]:
        """The features of an image that the fusion network takes."""
        return self.image_tower(self.normalize_image(image)).amax((2, 3))

    def compute_audio_features(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch features"]:
        """The features of a second of audio that the fusion network takes."""
        return self.audio_tower(self.spectrogram(self.check_audio(audio))).amax((2, 3))

    def fuse_pairs(
        self, image: Float[Tensor, "pairs features"], audio: Float[Tensor, "pairs features"]
    ) -> Float[Tensor, "pairs 2"]:
        """The logits (mismatch, match) of the features of pairs."""
        return self.fc2(F.relu(self.fc1(torch.cat([image, audio], 1))))

    def fuse_all_pairs(
        self, image: Float[Tensor, "images features"], audio: Float[Tensor, "clips features"]
    ) -> Float[Tensor, "images clips 2"]:
        """The logits of every image with every audio; the first layer is linear, so each modality passes it once."""
        image_weight, audio_weight = self.fc1.weight.split([image.shape[1], audio.shape[1]], 1)
        hidden = F.linear(image, image_weight, self.fc1.bias)[:, None] + F.linear(audio, audio_weight)
        return self.fc2(F.relu(hidden))

    def compute_position_features(
        self, image: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch rows columns features"]:
        """The vector of each position of the last map; `compute_image_features` is their maximum."""
        return self.image_tower(self.normalize_image(image)).permute(0, 2, 3, 1)

    def score_positions(
        self, positions: Float[Tensor, "batch rows columns features"], audio: Float[Tensor, "batch features"]
    ) -> Float[Tensor, "batch rows columns"]:
        """The logit of match minus that of mismatch of each position, scored as if it were the whole image."""
        _, rows, columns, _ = positions.shape
        logits = self.fuse_pairs(positions.flatten(0, 2), audio.repeat_interleave(rows * columns, 0))
        return (logits[:, 1] - logits[:, 0]).view(-1, rows, columns)

    def normalize_image(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
        """Scales uint8 to [-1, 1] (l3embedding, data/avc/sample.py).

        Raises:
            TypeError: The images are not uint8.
            ValueError: The shape is another one.
        """
        return normalize_image(image, self.fc1.weight.dtype)

    def check_audio(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch samples"]:
        """Validates the audio, see `check_audio`.

        Raises:
            TypeError: The samples are not floating point, or of float64 for a model of another type.
            ValueError: The shape is another one, the audio is longer or shorter than `audio_seconds`, or has samples
                that are not finite.
        """
        config, dtype = self.config, self.fc1.weight.dtype
        return check_audio(audio, config.audio_seconds, config.sample_rate, dtype, not self.training)

    def compute_image_map(
        self, image: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch channels rows columns"]:
        """The map of conv4_2 that image embeddings pool."""
        tower, x = self.image_tower, self.normalize_image(image)
        return tower(x) if self.config.embedding == "relu" else tower.compute_last_convolution(x)

    def compute_audio_map(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch channels rows columns"]:
        """The map of conv4_2 that audio embeddings pool; rows are frequencies from low to high, columns are time."""
        tower, x = self.audio_tower, self.spectrogram(self.check_audio(audio))
        return tower(x) if self.config.embedding == "relu" else tower.compute_last_convolution(x)

    def embed_image(
        self, image: UInt8[Tensor, "batch 3 height width"], grid: tuple[int, int] = IMAGE_GRID
    ) -> Float[Tensor, "batch features"]:
        """Image embeddings: conv4_2 max-pooled to a grid, 8192 features; OpenL3's 512 features use a grid of (1, 1)."""
        return max_pool_to_grid(self.compute_image_map(image), grid)

    def embed_audio(
        self, audio: Float[Tensor, "batch samples"], grid: tuple[int, int] = AUDIO_GRID
    ) -> Float[Tensor, "batch features"]:
        """Audio embeddings: conv4_2 max-pooled to a grid, 6144 features; OpenL3's 512 features use a grid of (1, 1)."""
        return max_pool_to_grid(self.compute_audio_map(audio), grid)
