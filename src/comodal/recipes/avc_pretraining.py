"""L3-Net: audio-visual correspondence on clips of video (Look, Listen and Learn, ICCV 2017).

The paper, section 3.2: Adam, learning rate 1e-4, l2 of 1e-5, batches of 256 over 16 GPUs, 60 million pairs in two days.
Expect there: 78 % of held-out pairs right on Flickr-SoundNet, 74 % on Kinetics-Sounds; half is chance.

From l3embedding (jobs/retrain_feb2019, 03_train_embedding.py), which trained OpenL3's weights: batches of 64, 300
epochs of 4,096 batches, learning rate 1e-5, and the ranges of brightness and saturation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from comodal.data.loader import Loader, Workers
from comodal.data.shards.clip_dataset import Augmentation, ClipPairDataset
from comodal.data.shards.pair_sampler import MatchedPairSampler, PairSampler
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import DataError
from comodal.models.l3net.l3net import (
    L3EMBEDDING_L3NET_CONFIG,
    PAPER_L3NET_CONFIG,
    L3Net,
    L3NetConfig,
    make_openl3_config,
    make_small_l3net_config,
)
from comodal.objectives.avc import AllPairs, AudioVisualCorrespondence
from comodal.training.optimization import make_adam, make_cosine_schedule
from comodal.training.run import Run

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


class AVCDefaults(NamedTuple):
    """What is trained how long, for parameters that are None."""

    steps: int
    batch_size: int
    learning_rate: float
    validate_every: int


PAPER_PAIRS = 60_000_000
PAPER_AVC_DEFAULTS = AVCDefaults(PAPER_PAIRS // 256, 256, 1e-4, 500)
L3EMBEDDING_AVC_DEFAULTS = AVCDefaults(300 * 4096, 64, 1e-5, 500)
SMALL_AVC_DEFAULTS = AVCDefaults(3_000, 64, 1e-3, 250)  # half the rate of the demo, which has a warm-up
AVC_DEFAULTS = dict.fromkeys(AVC_VARIANTS, L3EMBEDDING_AVC_DEFAULTS) | {
    "paper": PAPER_AVC_DEFAULTS,
    "small": SMALL_AVC_DEFAULTS,
}
AVC_VALIDATION_SEED_OFFSET = 1  # keeps the chance of the validation pairs apart from that of the training pairs


def recipe(
    data: Path,
    variant: AVCVariant = "paper",
    width: int | None = None,
    image_size: int | None = None,
    objective: Objective = "avc",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    weight_decay: float = 2e-5,
    warm_up_steps: int = 0,
    final_fraction: float = 1.0,
    mirror: bool = True,
    brightness: float = 32 / 255,
    saturation: float = 0.5,
    volume: float = 0.1,
    validation_pairs: int = 1024,
    workers: Workers = "auto",
    cache_megabytes: int = 0,
    seed: int = 0,
) -> Run:
    """Trains L3-Net to tell whether a picture and a second of sound come from one moment of one clip.

    Args:
        data: A folder that `comodal prepare` made, with train and validation.
        variant: The network: the paper's, one that learns on two cores, l3embedding's (ReLU before the norm in
            conv1_2), or OpenL3's.
        width: Filters of the first block of layers; by default the variant's, 16 in small and 64 in all others.
        image_size: Side of the pictures, which are cut from frames resized to 8/7 of it; by default the variant's, 64
            in small and 224 in all others.
        objective: avc scores the paper's pairs, half of them matched; all_pairs scores every image of the batch of a
            process with every audio, which learns in fewer steps. Validation is avc in both.
        steps: Updates of the weights; by default 234,375 for paper (60 million pairs), 3,000 for small and, as in
            l3embedding, 1,228,800 for all other variants.
        batch_size: Pairs in a step, over all processes, half of them matched (in all_pairs all of them); by default
            256 for paper, 64 for small and, as in l3embedding, for all other variants.
        learning_rate: Of Adam; by default 1e-4 for paper, 1e-3 for small and, as in l3embedding, 1e-5 for all other
            variants.
        weight_decay: Of kernels alone. Keras' l2 of 1e-5, the paper's, is a decay of 2e-5.
        warm_up_steps: Steps in which the learning rate rises from 0.
        final_fraction: The learning rate falls along a cosine to this fraction of itself; 1 keeps it constant.
        mirror: Mirror every other picture. Not for digits and letters.
        brightness: Make pictures up to so much brighter or darker; 1 is white. The range is l3embedding's.
        saturation: Change the saturation of pictures by up to this fraction, l3embedding's.
        volume: Change the volume of sounds by up to this fraction.
        validation_pairs: Fixed pairs of the validation clips, rounded up to whole batches; 0 for none.
        workers: Processes that read data, each some 400 pairs a second; auto: two for a CPU, more for a GPU.
        cache_megabytes: Decoded training clips that each worker keeps in memory. A small data set is then decoded once.
        seed: Of the first weights, the pairs and the augmentation.

    Examples:
        comodal train l3net --data shards/ --out runs/first --variant small --steps 3000
        torchrun --nproc_per_node 8 -m comodal train l3net --data shards/ --out runs/full --batch_size 512
    """
    network, usual = AVC_VARIANTS[variant], AVC_DEFAULTS[variant]
    steps = usual.steps if steps is None else steps
    batch_size = usual.batch_size if batch_size is None else batch_size
    learning_rate = usual.learning_rate if learning_rate is None else learning_rate
    config = replace(network, width=width or network.width, image_size=image_size or network.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = L3Net(config)
    trained = AllPairs(model) if objective == "all_pairs" else AudioVisualCorrespondence(model)
    augmentation = Augmentation(mirror, brightness, saturation, volume)
    sampler = MatchedPairSampler if objective == "all_pairs" else PairSampler
    train = make_clip_pairs(data / "train", config, seed, augmentation, sampler, cache_megabytes * 10**6)
    validation = None
    if validation_pairs:
        held_out = make_clip_pairs(data / "validation", config, seed + AVC_VALIDATION_SEED_OFFSET, None)
        length = -(-validation_pairs // batch_size) * batch_size
        validation = Loader(held_out, batch_size, workers, length)
    return Run(
        objective=trained,
        batches=Loader(train, batch_size, workers),
        validation=validation,
        optimizer=make_adam(trained, learning_rate, weight_decay),
        learning_rate=make_cosine_schedule(learning_rate, steps, warm_up_steps, final_fraction),
        steps=steps,
        seed=seed,
        fingerprint=train.shards.fingerprint,
        resolved={"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate},
        validate_every=usual.validate_every,
    )


def make_clip_pairs(
    folder: Path,
    config: L3NetConfig,
    seed: int,
    augmentation: Augmentation | None,
    sampler: type[PairSampler] = PairSampler,
    cache_bytes: int = 0,
) -> ClipPairDataset:
    """The pairs of one split.

    Raises:
        DataError: There are no shards, or too few clips to make pairs.
    """
    shards = ShardReader(folder)
    try:
        pairs = sampler(shards, seed, config.sound_seconds)
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    return ClipPairDataset(shards, pairs, config.image_size, config.sample_rate, augmentation, cache_bytes)
