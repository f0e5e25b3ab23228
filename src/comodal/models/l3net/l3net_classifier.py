"""An L3-Net with a linear classification head for images or audio, for end-to-end fine-tuning.

The features are those of a linear probe (conv4_2 max-pooled to a grid; L3-Net, sections 4.2 and 4.3), batch-normalized
as the probe z-scores them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from comodal.errors import CheckpointError, check_number
from comodal.models.checkpoint import load_model
from comodal.models.l3net import l3net
from comodal.models.l3net.clip_classifier import ClipClassifier
from comodal.models.l3net.l3net import L3Net
from comodal.models.pretrained import PretrainedModel

MAX_FEATURES, MAX_CLASSES = 1 << 20, 1 << 20
Modality = Literal["image", "audio"]


@dataclass(frozen=True)
class L3ClassifierConfig:
    """An L3-Net and its classes.

    Args:
        l3net: Backbone; one of its two towers is used.
        modality: Tower that is used.
        features: Number of features of the pooled map.
        classes: Number of classes.
        dropout: Dropout of the features.
    """

    l3net: l3net.L3NetConfig
    modality: Modality
    features: int
    classes: int
    dropout: float

    def __post_init__(self) -> None:
        check_number("features", self.features, 1, MAX_FEATURES)
        check_number("classes", self.classes, 1, MAX_CLASSES)
        check_number("dropout", self.dropout, 0, 1)


class L3Classifier(PretrainedModel, nn.Module):
    """The classifier. Images are uint8 and audio is a waveform, as for L3-Net."""

    def __init__(self, config: L3ClassifierConfig) -> None:
        super().__init__()
        self.config = config
        self.l3net = L3Net(config.l3net)
        self.norm = nn.BatchNorm1d(config.features, affine=False)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.features, config.classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def forward(
        self, inputs: UInt8[Tensor, "batch 3 height width"] | Float[Tensor, "batch samples"]
    ) -> Float[Tensor, "batch classes"]:
        embed = self.l3net.embed_image if self.config.modality == "image" else self.l3net.embed_audio
        return self.classifier(self.dropout(self.norm(embed(inputs))))

    def get_trained_tower(self) -> nn.Module:
        """The tower that the classes depend on."""
        return self.l3net.image_tower if self.config.modality == "image" else self.l3net.audio_tower


def build_l3_classifier(model: L3Net, modality: Modality, classes: int, dropout: float) -> L3Classifier:
    """Returns a classifier with a pretrained backbone and a new head of zeros."""
    features = count_pooled_features(model, modality)
    with torch.random.fork_rng(devices=[]):
        classifier = L3Classifier(L3ClassifierConfig(model.config, modality, features, classes, dropout))
    classifier.l3net.load_state_dict(model.state_dict())
    return classifier.train()


def count_pooled_features(model: L3Net, modality: Modality) -> int:
    """Number of features of the pooled map of a training crop, or of a second of audio."""
    config = model.config
    with torch.inference_mode():
        if modality == "image":
            side = config.image_size
            return model.eval().embed_image(torch.zeros(1, 3, side, side, dtype=torch.uint8)).shape[1]
        return model.eval().embed_audio(torch.zeros(1, round(config.audio_seconds * config.sample_rate))).shape[1]


def load_any_l3net(path: Path) -> L3Net:
    """Loads an L3-Net, or the backbone of a classifier, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    backbone = model.l3net if isinstance(model, L3Classifier | ClipClassifier) else model
    if not isinstance(backbone, L3Net):
        raise CheckpointError(f"{path}: a {type(model).__name__}; this needs an L3Net")
    return backbone


def load_l3_classifier(path: Path, modality: Modality) -> L3Classifier:
    """Loads a classifier from a run folder or model folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, L3Classifier):
        raise CheckpointError(
            f"{path}: a {type(model).__name__}, which has no classes; fine-tune it with `comodal train "
            f"{'image' if modality == 'image' else 'audio'}_classes`"
        )
    if model.config.modality != modality:
        raise CheckpointError(f"{path}: a classifier of {model.config.modality}, not of {modality}")
    return model
