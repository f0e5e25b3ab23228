"""An image classifier and an audio classifier of clips: L3-Net's two towers, each with a linear layer.

The supervised baselines of Look, Listen and Learn, table 1, are built on it. "Supervised direct combination" decides
whether an image and audio correspond by the scalar product of the two vectors of class probabilities. "Supervised
pretraining" trains the fusion network on the features of the two towers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from comodal.errors import check_number
from comodal.models.l3net.l3net import L3Net, L3NetConfig
from comodal.models.l3net.vgg import init_conv_weights
from comodal.models.pretrained import PretrainedModel

MAX_CLIP_CLASSES = 1 << 16


@dataclass(frozen=True)
class ClipClassifierConfig:
    """Two towers and their classes.

    Args:
        l3net: Network whose two towers are used; its fusion network is not.
        classes: Number of classes.
    """

    l3net: L3NetConfig
    classes: int

    def __post_init__(self) -> None:
        check_number("classes", self.classes, 2, MAX_CLIP_CLASSES)


class ClipClassifierOutput(NamedTuple):
    """The class logits of each image and of each second of audio."""

    image_logits: Float[Tensor, "batch classes"]
    audio_logits: Float[Tensor, "batch classes"]


class ClipClassifier(PretrainedModel, nn.Module):
    """The two classifiers. Images are uint8 and audio is a waveform, as for L3-Net."""

    def __init__(self, config: ClipClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.l3net = L3Net(config.l3net)
        self.image_classifier = nn.Linear(8 * config.l3net.width, config.classes)
        self.audio_classifier = nn.Linear(8 * config.l3net.width, config.classes)
        init_conv_weights(self.image_classifier)
        init_conv_weights(self.audio_classifier)

    def forward(
        self, image: UInt8[Tensor, "batch 3 height width"], audio: Float[Tensor, "batch samples"]
    ) -> ClipClassifierOutput:
        image_features, audio_features = (
            self.l3net.compute_image_features(image),
            self.l3net.compute_audio_features(audio),
        )
        return ClipClassifierOutput(self.image_classifier(image_features), self.audio_classifier(audio_features))

    def compute_image_features(self, image: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes"]:
        """The class probabilities of images."""
        return self.image_classifier(self.l3net.compute_image_features(image)).float().softmax(-1)

    def compute_audio_features(self, audio: Float[Tensor, "batch samples"]) -> Float[Tensor, "batch classes"]:
        """The class probabilities of seconds of audio."""
        return self.audio_classifier(self.l3net.compute_audio_features(audio)).float().softmax(-1)

    def fuse_pairs(
        self, image: Float[Tensor, "pairs classes"], audio: Float[Tensor, "pairs classes"]
    ) -> Float[Tensor, "pairs 2"]:
        """Scores (mismatch, match) of pairs: 0, and the scalar product of the class probabilities."""
        product = (image * audio).sum(-1)
        return torch.stack([torch.zeros_like(product), product], -1)

    def fuse_all_pairs(
        self, image: Float[Tensor, "images classes"], audio: Float[Tensor, "clips classes"]
    ) -> Float[Tensor, "images clips 2"]:
        """The scores of every image with every audio."""
        product = image @ audio.T
        return torch.stack([torch.zeros_like(product), product], -1)
