"""Training of an image classifier and an audio classifier on labeled clips: L3-Net's supervised baselines.

Look, Listen and Learn, table 1, compares L3-Net with two baselines whose towers are trained on the action classes of
Kinetics-Sounds (section 4.1). Both towers are trained here in one run: they share no weight, and the loss is the sum of
two cross-entropies. `comodal evaluate avc` evaluates the result as "supervised direct combination". For "supervised
pretraining", `comodal train l3net --start-from RUN --trained-layers fusion` trains the fusion network on the towers.

The paper states no schedule for the classifiers: the steps are ours, and the model has the weights of the best
validation accuracy.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.data.batch import LabeledClipBatch
from comodal.data.loader import Loader, round_up_to_batches
from comodal.data.shards.clip_dataset import Augmentation, ClipPairDataset
from comodal.data.shards.clip_labels import read_clip_classes
from comodal.data.shards.dataset_record import read_dataset_record
from comodal.data.shards.pair_sampler import MatchedPairSampler
from comodal.errors import DataError
from comodal.flat_parameters import flatten_parameters
from comodal.models.l3net.clip_classifier import ClipClassifier, ClipClassifierConfig
from comodal.recipes.avc_pretraining import (
    AVC_VALIDATION_SEED_OFFSET,
    AVC_VARIANTS,
    DEFAULT_LOADING,
    PAPER_AUGMENTATION,
    PAPER_NETWORK,
    AVCLoading,
    AVCNetwork,
    AVCSchedule,
    make_clip_pairs,
)
from comodal.tasks.evaluation.l3net_fine_tuning import CLASSES_FILE
from comodal.training.memory_limits import check_model_fits
from comodal.training.optimization import make_adam, make_cosine_schedule
from comodal.training.recipe_run import Run, VariantDefaults

CLIP_CLASS_DEFAULTS = dict.fromkeys(AVC_VARIANTS, VariantDefaults(20_000, 256, 1e-4, 500)) | {
    "small": VariantDefaults(2_000, 64, 1e-3, 250)
}


@dataclass(frozen=True)
class ClipClassSchedule(AVCSchedule):
    """The training schedule of the classifiers.

    Args:
        steps: Optimizer steps; by default 2,000 for small and 20,000 for all other variants.
        batch_size: Clips in a step over all processes; by default 64 for small and 256 for all other variants.
        learning_rate: Learning rate of Adam; by default 1e-3 for small and 1e-4 for all other variants.
    """


DEFAULT_CLIP_CLASS_SCHEDULE = ClipClassSchedule()


class LabeledClips:
    """A frame and a second of audio of clips, with the class of each: batches of any (epoch, index).

    Args:
        clips: Matched pairs of the clips.
        classes: Class names in the order of their indices.
    """

    def __init__(self, clips: ClipPairDataset, classes: Sequence[str]) -> None:
        self.clips = clips
        class_ids = {name: index for index, name in enumerate(classes)}
        names = read_clip_classes(clips.shards)
        if unknown := sorted(set(names) - set(classes)):
            raise DataError(f"{clips.shards.folder}: no training clip has the class {unknown[0]!r}")
        self.target = np.array([class_ids[name] for name in names])

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, positions: Sequence[tuple[int, int]]) -> LabeledClipBatch:
        """The clips of these (epoch, index), in this order."""
        batch = self.clips.batch(positions)
        rows = [self.clips.pairs(epoch, index).image_clip for epoch, index in positions]
        return LabeledClipBatch(batch.image, batch.audio, torch.from_numpy(self.target[rows]), batch.keys)


class ClipClassificationObjective(nn.Module):
    """The sum of the cross-entropies of both classifiers; `accuracy` is the mean of both accuracies."""

    def __init__(self, model: ClipClassifier) -> None:
        super().__init__()
        self.model = model
        for layer in (model.l3net.fc1, model.l3net.fc2):
            layer.requires_grad_(False)

    def forward(self, batch: LabeledClipBatch) -> dict[str, Tensor]:
        output = self.model(batch.image, batch.audio)
        losses = [F.cross_entropy(logits.float(), batch.target) for logits in output]
        image, audio = ((logits.argmax(1) == batch.target).float().mean() for logits in output)
        return {
            "loss": losses[0] + losses[1],
            "accuracy": (image + audio) / 2,
            "image_accuracy": image,
            "audio_accuracy": audio,
        }


@flatten_parameters
def recipe(
    data: Path,
    network: AVCNetwork = PAPER_NETWORK,
    schedule: ClipClassSchedule = DEFAULT_CLIP_CLASS_SCHEDULE,
    augmentation: Augmentation = PAPER_AUGMENTATION,
    loading: AVCLoading = DEFAULT_LOADING,
) -> Run:
    """Trains L3-Net's two towers to classify labeled clips, for the paper's supervised baselines.

    Args:
        data: Folder written by `comodal prepare` whose clips have one label each, such as those of Kinetics-Sounds.
        network: The network.
        schedule: The steps, the batch size and the learning rate.
        augmentation: Random changes of images and audio.
        loading: How clips become batches.

    Examples:
        comodal train clip_classes --data shards/ --out runs/classes
        comodal evaluate avc --model runs/classes --data shards/ --out results/direct
        comodal train l3net --data shards/ --start-from runs/classes --trained-layers fusion --out runs/fusion
    """
    config, chosen, seed = network.build_config(), schedule.fill(CLIP_CLASS_DEFAULTS[network.variant]), loading.seed
    clips = make_clip_pairs(
        data / "train", config, seed, augmentation, MatchedPairSampler, loading.cache_megabytes * 10**6
    )
    classes = sorted(set(read_clip_classes(clips.shards)))
    if len(classes) < 2:
        raise DataError(f"{data / 'train'}: all clips have the class {classes[0]!r}; a classifier needs two")
    model_config = ClipClassifierConfig(config, len(classes))
    check_model_fits(lambda: ClipClassifier(model_config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = ClipClassificationObjective(ClipClassifier(model_config))
    validation = None
    if loading.validation_pairs:
        held_out = make_clip_pairs(
            data / "validation", config, seed + AVC_VALIDATION_SEED_OFFSET, None, MatchedPairSampler
        )
        length = round_up_to_batches(loading.validation_pairs, chosen.batch_size)
        validation = Loader(LabeledClips(held_out, classes), chosen.batch_size, loading.workers, length)
    return Run(
        objective=objective,
        batches=Loader(LabeledClips(clips, classes), chosen.batch_size, loading.workers),
        validation=validation,
        optimizer=make_adam(objective, chosen.learning_rate, schedule.weight_decay),
        learning_rate=make_cosine_schedule(
            chosen.learning_rate, chosen.steps, schedule.warmup_steps, schedule.min_lr_ratio
        ),
        steps=chosen.steps,
        seed=seed,
        fingerprint=clips.shards.fingerprint,
        dataset=read_dataset_record(data),
        files={CLASSES_FILE: (json.dumps(classes, ensure_ascii=False, indent=0) + "\n").encode()},
        resolved=chosen.list_parameters(),
        validate_every=chosen.validate_every,
        selection_metric="accuracy" if validation else "",
    )
