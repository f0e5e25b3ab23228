"""Pretraining of AVE-Net and AVOL-Net on clips of video (Objects that Sound, ECCV 2018).

The paper, sections 3.1 and 3.2: Adam, weight decay of 1e-5, batches of 2,048 over 16 GPUs, on the 263,000 clips of
AudioSet-Instruments. The learning rate is chosen by a grid search and multiplied by 0.94 every 16 epochs. The paper
states neither that learning rate nor the number of steps: both are ours.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from comodal.data.shards.clip_dataset import Augmentation
from comodal.data.shards.pair_sampler import MatchedPairSampler, PairSampler
from comodal.errors import CheckpointError
from comodal.flat_parameters import flatten_parameters
from comodal.models.ave_net.ave_net import (
    PAPER_AVE_NET_CONFIG,
    SMALL_AVE_NET_CONFIG,
    AudioBackbone,
    AVENet,
    AVENetConfig,
    Comparison,
    ImageBackbone,
)
from comodal.models.ave_net.musicnn_vgg import MUSICNN_SPECTROGRAM_CONFIG, MUSICNN_VGG
from comodal.models.checkpoint import load_model
from comodal.models.convert.convert_musicnn import convert_musicnn, find_musicnn_weights
from comodal.models.efficientnet_lite0 import LITE0, build_efficientnet_lite0
from comodal.models.l3net.l3net_classifier import load_any_l3net
from comodal.objectives.avc import AudioVisualCorrespondence
from comodal.objectives.joint_embedding import ContrastiveEmbedding
from comodal.recipes.avc_pretraining import (
    DEFAULT_LOADING,
    PAPER_AUGMENTATION,
    AVCLoading,
    AVCSchedule,
    build_pair_run,
    make_clip_pairs,
    make_pair_validation_loader,
)
from comodal.training.memory_limits import check_model_fits
from comodal.training.recipe_run import Run, VariantDefaults

AVEVariant = Literal["paper", "small"]
AVE_VARIANTS: dict[AVEVariant, AVENetConfig] = {"paper": PAPER_AVE_NET_CONFIG, "small": SMALL_AVE_NET_CONFIG}
AVE_DEFAULTS: dict[AVEVariant, VariantDefaults] = {
    "paper": VariantDefaults(60_000_000 // 2048, 2048, 1e-4, 500),  # as many pairs as L3-Net's paper
    "small": VariantDefaults(3_000, 64, 1e-3, 250),
}
LITE0_IMAGE_SIZE = 224
FrozenTowers = Literal["none", "image", "audio", "both"]
FROZEN_PARTS: dict[FrozenTowers, tuple[str, ...]] = {
    "none": (),
    "image": ("image_tower",),
    "audio": ("audio_tower",),
    "both": ("image_tower", "audio_tower"),
}


@dataclass(frozen=True)
class AVENetwork:
    """The network of a run.

    Args:
        variant: Network: paper is the paper's; small trains on two CPU cores.
        image_backbone: Image tower: vgg, or efficientnet_lite0 with ImageNet weights (extra `lite`).
        audio_backbone: Audio tower: vgg; musicnn_vgg, trained on music, which takes audio at 16 kHz (`pip install
            --no-deps musicnn`); or spectrogram_statistics, the mean and standard deviation of each band over time.
        comparison: distance is AVE-Net; localization is AVOL-Net, which scores each position of the image.
        width: Filters of the first convolution block of VGG towers; by default 64 for paper and 16 for small.
        image_size: Side of the images in pixels. They are cropped from frames resized to 8/7 of it; by default 64 for
            small with a VGG tower, and 224 otherwise.
    """

    variant: AVEVariant = "paper"
    image_backbone: ImageBackbone = "vgg"
    audio_backbone: AudioBackbone = "vgg"
    comparison: Comparison = "distance"
    width: int | None = None
    image_size: int | None = None

    def build_config(self) -> AVENetConfig:
        """The config of the variant, with the given towers and sizes."""
        defaults = AVE_VARIANTS[self.variant]
        default_size = LITE0_IMAGE_SIZE if self.image_backbone == LITE0 else defaults.image_size
        return replace(
            defaults,
            image_backbone=self.image_backbone,
            audio_backbone=self.audio_backbone,
            spectrogram=MUSICNN_SPECTROGRAM_CONFIG if self.audio_backbone == MUSICNN_VGG else defaults.spectrogram,
            comparison=self.comparison,
            width=defaults.width if self.width is None else self.width,
            image_size=default_size if self.image_size is None else self.image_size,
        )


@dataclass(frozen=True)
class AVEInitialState:
    """The initial weights of a run, and the layers that are trained.

    Args:
        start_from: Run or model folder whose weights initialize the network: an AVE-Net of the same configuration
            except for the image size, or an L3-Net, whose towers are used. Unlike --resume, this starts a new run.
        frozen_towers: Towers that are not trained: none, image, audio or both.
    """

    start_from: Path | None = None
    frozen_towers: FrozenTowers = "none"


@dataclass(frozen=True)
class AVESchedule(AVCSchedule):
    """The training schedule of AVE-Net.

    Args:
        steps: Optimizer steps; by default 29,296 for paper (60 million pairs) and 3,000 for small.
        batch_size: Pairs in a step over all processes; by default 2,048 for paper and 64 for small. Half of them are
            matched with avc, all of them with contrastive.
        learning_rate: Learning rate of Adam; by default 1e-4 for paper and 1e-3 for small.
    """


PAPER_AVE_NETWORK, PAPER_AVE_SCHEDULE, RANDOM_AVE_WEIGHTS = AVENetwork(), AVESchedule(), AVEInitialState()


@flatten_parameters
def recipe(
    data: Path,
    network: AVENetwork = PAPER_AVE_NETWORK,
    objective: Literal["avc", "contrastive"] = "avc",
    initial: AVEInitialState = RANDOM_AVE_WEIGHTS,
    schedule: AVESchedule = PAPER_AVE_SCHEDULE,
    augmentation: Augmentation = PAPER_AUGMENTATION,
    loading: AVCLoading = DEFAULT_LOADING,
) -> Run:
    """Pretrains AVE-Net: embeddings of images and audio in one space, from clips of video.

    Args:
        data: Folder written by `comodal prepare`, with a train and a validation split.
        network: The network.
        objective: avc is the paper's: pairs are classified, half of them matched. contrastive finds the matched audio
            of each image among the audio of the batches of all processes, and the other way round (InfoNCE).
            Validation uses avc in both cases.
        initial: The initial weights, and the layers that are trained.
        schedule: The steps, the batch size and the learning rate.
        augmentation: Random changes of images and audio.
        loading: How clips become batches.

    Examples:
        comodal train ave_net --data shards/ --out runs/ave --variant small --objective contrastive
        comodal train ave_net --data shards/ --out runs/avol --variant small --comparison localization
        comodal evaluate avc --model runs/ave --data shards/ --out results/ave
    """
    config, chosen, seed = network.build_config(), schedule.fill(AVE_DEFAULTS[network.variant]), loading.seed
    check_model_fits(lambda: AVENet(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AVENet(config)
    copy_initial_weights(model, initial.start_from)
    frozen_parts = FROZEN_PARTS[initial.frozen_towers]
    check_frozen_towers(initial, config)
    objective_module: nn.Module
    if objective == "contrastive":
        objective_module = ContrastiveEmbedding(model, frozen_parts)
    else:
        objective_module = AudioVisualCorrespondence(model, frozen_parts)
    sampler = MatchedPairSampler if objective == "contrastive" else PairSampler
    train = make_clip_pairs(data / "train", config, seed, augmentation, sampler, loading.cache_megabytes * 10**6)
    validation = make_pair_validation_loader(data / "validation", config, chosen.batch_size, loading)
    return build_pair_run(data, objective_module, train, validation, chosen, schedule, loading)


def check_frozen_towers(initial: AVEInitialState, config: AVENetConfig) -> None:
    """Raises ValueError if a frozen tower would have random weights."""
    if initial.start_from is not None:
        return
    frozen = initial.frozen_towers
    for name, backbone in (("image", config.image_backbone), ("audio", config.audio_backbone)):
        if frozen in (name, "both") and backbone == "vgg":
            raise ValueError(
                f"--frozen-towers {frozen}: the {name} tower is a VGG with random weights; give the weights of a "
                f"model (--start-from RUN)"
            )


def copy_initial_weights(model: AVENet, start_from: Path | None) -> None:
    """Copies the weights of a run, or without one those that pretrained towers come with.

    Raises:
        CheckpointError: The folder holds no such model, or its network has another configuration.
        DataError: The package of a pretrained tower is not installed.
    """
    if start_from is None:
        load_pretrained_towers(model)
        return
    other = load_model(start_from)
    if isinstance(other, AVENet):
        own_values, other_values = asdict(model.config), asdict(other.config)
        differing = [name for name, value in own_values.items() if other_values[name] != value and name != "image_size"]
        if differing:
            differences = ", ".join(f"{name} {other_values[name]}, not {own_values[name]}" for name in differing)
            raise CheckpointError(f"{start_from}: its network has {differences}: start from it with its own options")
        model.load_state_dict(other.state_dict())
        return
    l3net = load_any_l3net(start_from)
    for name, backbone in (("image_tower", model.config.image_backbone), ("audio_tower", model.config.audio_backbone)):
        if backbone == "vgg":
            try:
                model.get_submodule(name).load_state_dict(l3net.get_submodule(name).state_dict())
            except RuntimeError as error:
                raise CheckpointError(
                    f"{start_from}: its {name.replace('_', ' ')} has another shape: start from it with its --width"
                ) from error
    load_pretrained_towers(model)


def load_pretrained_towers(model: AVENet) -> None:
    """Loads the weights of the towers that come with some.

    Raises:
        DataError: Their package is not installed.
    """
    if model.config.image_backbone == LITE0:
        model.image_tower.load_state_dict(build_efficientnet_lite0().state_dict(), strict=False)
    if model.config.audio_backbone == MUSICNN_VGG:
        model.audio_tower.load_state_dict(convert_musicnn(find_musicnn_weights()))
