"""Pretraining of L3-Net by audio-visual correspondence on clips of video (Look, Listen and Learn, ICCV 2017).

The paper, section 3.2: Adam, learning rate 1e-4, l2 of 1e-5, batches of 256 over 16 GPUs, 60 million pairs in two days.
Its accuracy on held-out pairs is 78 % on Flickr-SoundNet and 74 % on Kinetics-Sounds; the chance level is 50 %.

l3embedding (jobs/retrain_feb2019, 03_train_embedding.py), which trained OpenL3's weights, uses batches of 64, 300
epochs of 4,096 batches, and a learning rate of 1e-5. The ranges of brightness and saturation jitter are also from
there.
"""

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from comodal.console import print_line
from comodal.data.loader import Loader, Workers, round_up_to_batches
from comodal.data.shards.clip_dataset import Augmentation, ClipPairDataset
from comodal.data.shards.dataset_record import read_dataset_record
from comodal.data.shards.pair_sampler import MatchedPairSampler, PairSampler
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import CheckpointError, DataError, check_number
from comodal.flat_parameters import flatten_parameters
from comodal.models.ave_net.ave_net import AVENetConfig
from comodal.models.checkpoint import read_model_about
from comodal.models.l3net.l3net import (
    L3EMBEDDING_L3NET_CONFIG,
    PAPER_L3NET_CONFIG,
    L3Net,
    L3NetConfig,
    make_openl3_config,
    make_small_l3net_config,
)
from comodal.models.l3net.l3net_classifier import load_any_l3net
from comodal.objectives.avc import AllPairs, AudioVisualCorrespondence
from comodal.objectives.frozen_parts import BOTH_TOWERS
from comodal.training.memory_limits import check_model_fits
from comodal.training.optimization import make_adam, make_cosine_schedule
from comodal.training.recipe_run import PretrainingSchedule, Run, VariantDefaults

AVCVariant = Literal["paper", "small", "l3embedding", "openl3_linear", "openl3_mel128", "openl3_mel256"]
AVC_VARIANTS: dict[str, L3NetConfig] = {
    "paper": PAPER_L3NET_CONFIG,
    "small": make_small_l3net_config(),
    "l3embedding": L3EMBEDDING_L3NET_CONFIG,
    "openl3_linear": make_openl3_config("linear"),
    "openl3_mel128": make_openl3_config("mel128"),
    "openl3_mel256": make_openl3_config("mel256"),
}
Objective = Literal["avc", "all_pairs"]


PAPER_PAIRS = 60_000_000
PAPER_AVC_DEFAULTS = VariantDefaults(PAPER_PAIRS // 256, 256, 1e-4, 500)
L3EMBEDDING_AVC_DEFAULTS = VariantDefaults(300 * 4096, 64, 1e-5, 500)
SMALL_AVC_DEFAULTS = VariantDefaults(3_000, 64, 1e-3, 250)  # half the learning rate of the demo, which has a warmup
AVC_DEFAULTS = dict.fromkeys(AVC_VARIANTS, L3EMBEDDING_AVC_DEFAULTS) | {
    "paper": PAPER_AVC_DEFAULTS,
    "small": SMALL_AVC_DEFAULTS,
}
AVC_VALIDATION_SEED_OFFSET = 1  # separates the random state of the validation pairs from that of the training pairs


@dataclass(frozen=True)
class AVCNetwork:
    """The network of a run.

    Args:
        variant: Network: paper is the paper's, small trains on two CPU cores, l3embedding has the ReLU before the norm
            in conv1_2, and the others are OpenL3's.
        width: Filters of the first convolution block; by default 16 for small and 64 for all others.
        image_size: Side of the images in pixels. They are cropped from frames resized to 8/7 of it; by default 64 for
            small and 224 for all others.
    """

    variant: AVCVariant = "paper"
    width: int | None = None
    image_size: int | None = None

    def build_config(self) -> L3NetConfig:
        """The config of the variant, with the given sizes."""
        defaults = AVC_VARIANTS[self.variant]
        return replace(
            defaults,
            width=defaults.width if self.width is None else self.width,
            image_size=defaults.image_size if self.image_size is None else self.image_size,
        )


@dataclass(frozen=True)
class AVCInitialState:
    """The initial weights of a run, and the layers that are trained.

    Args:
        start_from: Run or model folder whose weights initialize the network: an L3-Net, one that `comodal convert
            openl3` wrote, or a classifier with the same towers. Its network must be that of the options, except for the
            image size. Unlike --resume, this starts a new run.
        trained_layers: all, or fusion: only the fusion network, on the features of the fixed towers of --start-from, as
            in the paper's baseline "supervised pretraining".
    """

    start_from: Path | None = None
    trained_layers: Literal["all", "fusion"] = "all"

    def __post_init__(self) -> None:
        if self.trained_layers == "fusion" and self.start_from is None:
            raise ValueError("--trained-layers fusion needs the towers of a model: --start-from RUN")


@dataclass(frozen=True)
class AVCSchedule(PretrainingSchedule):
    """The training schedule of L3-Net.

    Args:
        steps: Optimizer steps; by default 234,375 for paper (60 million pairs), 3,000 for small and, as in l3embedding,
            1,228,800 for all other variants.
        batch_size: Pairs in a step over all processes. Half of them are matched with avc, all of them with all_pairs.
            By default 256 for paper, and 64 for small and, as in l3embedding, for all other variants.
        learning_rate: Learning rate of Adam; by default 1e-4 for paper, 1e-3 for small and, as in l3embedding, 1e-5 for
            all other variants.
        weight_decay: Weight decay of the kernels only. Keras' l2 of 1e-5, the paper's, is a weight decay of 2e-5.
        warmup_steps: Warmup steps, in which the learning rate rises from 0.
        min_lr_ratio: Final learning rate of the cosine schedule as a fraction of the full one; 1 keeps it constant.
    """

    weight_decay: float = 2e-5
    warmup_steps: int = 0
    min_lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        check_number("weight_decay", self.weight_decay, 0, math.inf)


@dataclass(frozen=True)
class AVCLoading:
    """How clips become batches.

    Args:
        validation_pairs: Fixed pairs of validation clips, rounded up to whole batches; 0 for no validation.
        workers: Data loader processes, each for some 400 pairs a second; auto: two for a CPU, more for a GPU.
        cache_megabytes: Memory of each worker for decoded training clips. A small data set is then decoded once.
        seed: Random seed of the initial weights, the pairs and the augmentation.
    """

    validation_pairs: int = 1024
    workers: Workers = "auto"
    cache_megabytes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("validation_pairs", self.validation_pairs, 0, math.inf)


PAPER_NETWORK, PAPER_SCHEDULE, RANDOM_WEIGHTS = AVCNetwork(), AVCSchedule(), AVCInitialState()
PAPER_AUGMENTATION, DEFAULT_LOADING = Augmentation(), AVCLoading()


@flatten_parameters
def recipe(
    data: Path,
    network: AVCNetwork = PAPER_NETWORK,
    objective: Objective = "avc",
    initial: AVCInitialState = RANDOM_WEIGHTS,
    schedule: AVCSchedule = PAPER_SCHEDULE,
    augmentation: Augmentation = PAPER_AUGMENTATION,
    loading: AVCLoading = DEFAULT_LOADING,
) -> Run:
    """Pretrains L3-Net to predict whether an image and one second of audio are from the same moment of a clip.

    Args:
        data: Folder written by `comodal prepare`, with a train and a validation split.
        network: The network.
        objective: avc classifies the paper's pairs, half of them matched. all_pairs scores every image of a process's
            batch with every audio and trains in fewer steps. Validation uses avc in both cases.
        initial: The initial weights, and the layers that are trained.
        schedule: The steps, the batch size and the learning rate.
        augmentation: Random changes of images and audio.
        loading: How clips become batches.

    Examples:
        comodal train l3net --data shards/ --out runs/first --variant small --steps 3000
        comodal train l3net --data more/ --out runs/second --variant small --start-from runs/first
        torchrun --nproc-per-node 8 -m comodal train l3net --data shards/ --out runs/full --batch-size 512
    """
    config, chosen, seed = network.build_config(), schedule.fill(AVC_DEFAULTS[network.variant]), loading.seed
    check_model_fits(lambda: L3Net(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = L3Net(config)
    if initial.start_from is not None:
        copy_l3net_weights(model, initial.start_from)
    objective_module = build_avc_objective(model, objective, initial.trained_layers)
    sampler = MatchedPairSampler if objective == "all_pairs" else PairSampler
    train = make_clip_pairs(data / "train", config, seed, augmentation, sampler, loading.cache_megabytes * 10**6)
    validation = make_pair_validation_loader(data / "validation", config, chosen.batch_size, loading)
    return build_pair_run(data, objective_module, train, validation, chosen, schedule, loading)


def build_pair_run(
    data: Path,
    objective: nn.Module,
    train: ClipPairDataset,
    validation: Loader | None,
    chosen: VariantDefaults,
    schedule: AVCSchedule,
    loading: AVCLoading,
) -> Run:
    """The run of an objective on pairs of the shards in a folder."""
    return Run(
        objective=objective,
        batches=Loader(train, chosen.batch_size, loading.workers),
        validation=validation,
        optimizer=make_adam(objective, chosen.learning_rate, schedule.weight_decay),
        learning_rate=make_cosine_schedule(
            chosen.learning_rate, chosen.steps, schedule.warmup_steps, schedule.min_lr_ratio
        ),
        steps=chosen.steps,
        seed=loading.seed,
        fingerprint=train.shards.fingerprint,
        dataset=read_dataset_record(data),
        resolved=chosen.list_parameters(),
        validate_every=chosen.validate_every,
    )


def build_avc_objective(model: L3Net, objective: Objective, trained_layers: Literal["all", "fusion"]) -> nn.Module:
    """The objective, which trains all layers or the fusion network alone."""
    if trained_layers == "fusion" and objective == "all_pairs":
        raise ValueError("--trained-layers fusion is for --objective avc")
    if trained_layers == "fusion":
        return AudioVisualCorrespondence(model, BOTH_TOWERS)
    return AllPairs(model) if objective == "all_pairs" else AudioVisualCorrespondence(model)


def copy_l3net_weights(model: L3Net, path: Path) -> None:
    """Copies the weights of another network; a part of it that has none (all zero) keeps its random initialization.

    A converted OpenL3 file has one tower, and neither it nor a classifier has a fusion network.

    Raises:
        CheckpointError: The folder holds no such model, or its network has another configuration.
    """
    other = load_any_l3net(path)
    own_values, other_values = asdict(model.config), asdict(other.config)
    differing = [name for name, value in own_values.items() if other_values[name] != value and name != "image_size"]
    if differing:
        differences = ", ".join(f"{name} {other_values[name]}, not {own_values[name]}" for name in differing)
        raise CheckpointError(
            f"{path}: its network has {differences}: start from it with the --variant and --width of its run"
        )
    names_by_part = {"image tower": ("image_tower",), "audio tower": ("audio_tower",), "fusion network": ("fc1", "fc2")}
    has_fusion = read_model_about(path)["class"] == L3Net.__name__
    for part, names in names_by_part.items():
        weights = [other.get_submodule(name) for name in names]
        has_weights = any(bool(one.any()) for module in weights for one in module.parameters())
        if not has_weights or (part == "fusion network" and not has_fusion):
            print_line(f"{path} has no {part}: it is randomly initialized")
            continue
        for name, module in zip(names, weights, strict=True):
            model.get_submodule(name).load_state_dict(module.state_dict())


def make_pair_validation_loader(
    folder: Path, config: L3NetConfig | AVENetConfig, batch_size: int, loading: AVCLoading
) -> Loader | None:
    """The fixed pairs of validation, in whole batches; None without validation.

    Raises:
        DataError: There are no shards of validation, or too few clips to make pairs, as of a small folder of videos.
    """
    if not loading.validation_pairs:
        return None
    try:
        held_out = make_clip_pairs(folder, config, loading.seed + AVC_VALIDATION_SEED_OFFSET, None)
    except DataError as error:
        raise DataError(f"{error}; --validation-pairs 0 trains without validation") from error
    length = round_up_to_batches(loading.validation_pairs, batch_size)
    return Loader(held_out, batch_size, loading.workers, length)


def make_clip_pairs(
    folder: Path,
    config: L3NetConfig | AVENetConfig,
    seed: int,
    augmentation: Augmentation | None,
    sampler: type[PairSampler] = PairSampler,
    cache_bytes: int = 0,
) -> ClipPairDataset:
    """Returns the pairs of one split.

    Raises:
        DataError: There are no shards, or too few clips to make pairs.
    """
    shards = ShardReader(folder)
    try:
        pairs = sampler(shards, seed, config.audio_seconds)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    return ClipPairDataset(shards, pairs, config.image_size, config.sample_rate, augmentation, cache_bytes)
