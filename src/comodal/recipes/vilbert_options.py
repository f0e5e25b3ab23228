"""The options of ViLBERT's pretraining, grouped by subject; `vilbert_pretraining.py` uses them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from comodal.data.loader import Workers
from comodal.errors import check_number
from comodal.models.convert.backbone_variants import ViLBERTVariant, is_single_stream_variant
from comodal.training.recipe_run import PretrainingSchedule


@dataclass(frozen=True)
class ViLBERTNetwork:
    """The network of a run.

    Args:
        variant: The paper's base model with 2, 4, 6 or 8 co-attention layers, one on BERT-large, or a small one for two
            CPU cores. single_stream is one BERT over tokens and regions (the paper's baseline), of BERT-base's sizes
            without --bert; small_single_stream is a small one.
        regions_as: Input of a region: its features, or its visual token (`comodal prepare tokens`).
        dropout: Dropout of both streams and of attention; by default that of the BERT or the variant, 0.1. With 0,
            small models train faster, and a step on a CPU takes less time.
        contrastive_weight: Weight of a contrastive loss between texts and images before the first co-attention layer,
            over the matched pairs of a process's batch (ALBEF's; not in the paper); 0 for none. With 1, small models
            train in fewer steps.
        without_co_attention: Ablation: leave out all co-attention layers. The streams then depend on each other only in
            the product of the pooled streams, which the alignment head reads.
    """

    variant: ViLBERTVariant = "base_6"
    regions_as: Literal["features", "tokens"] = "features"
    dropout: float | None = None
    contrastive_weight: float = 0.0
    without_co_attention: bool = False

    def __post_init__(self) -> None:
        check_number("contrastive_weight", self.contrastive_weight, 0, math.inf)
        if is_single_stream_variant(self.variant):
            if self.contrastive_weight:
                raise ValueError(f"--variant {self.variant} has no unimodal encoders: leave out --contrastive-weight")
            if self.without_co_attention:
                raise ValueError(f"--variant {self.variant} has no co-attention: leave out --without-co-attention")

    @property
    def is_small(self) -> bool:
        return self.variant.startswith("small")


@dataclass(frozen=True)
class InitialState:
    """Where the weights and the vocabulary come from.

    Args:
        bert: Hugging Face BERT (folder or file) that initializes the text stream; without it the text stream is
            randomly initialized.
        allow_missing: Randomly initialize tensors that the BERT's file lacks; without it a missing tensor is an error.
        vocabulary: Vocabulary: a vocab.txt or tokenizer.json; by default the BERT's, or without a BERT the words of the
            captions.
        start_from: Run or model of the same sizes whose weights initialize the model; --bert then only gives the
            vocabulary and the sizes of the text stream.
    """

    bert: Path | None = None
    allow_missing: bool = False
    vocabulary: Path | None = None
    start_from: Path | None = None


@dataclass(frozen=True)
class PretextTasks:
    """What is masked, and which pairs are mismatched.

    Args:
        region_targets: Targets of masked regions, one or more of classes, features, contrast and tokens; by default the
            first that the store has of the detector's classes, tokens, and features.
        overlap: Also mask regions that overlap a masked one by more than this IoU; 12-in-1 uses 0.4.
        mask_loss_on_mismatched: Also compute the masked losses on mismatched pairs; 12-in-1 does not.
        negatives: Part of a pair that is replaced to make a mismatched pair (a negative); the original's code replaces
            the caption.
        faithful: Mask, average and draw negatives as the original's code does where that differs from the paper.
        token_weight: Weight of the loss of masked tokens. Ablation: 0 masks no token.
        region_weight: Weight of the loss of masked regions. Ablation: 0 masks no region.
        alignment_weight: Weight of the alignment loss. Ablation: 0 leaves all pairs matched.
    """

    region_targets: Sequence[str] | None = None
    overlap: float | None = None
    mask_loss_on_mismatched: bool = True
    negatives: Literal["caption", "image", "either"] = "either"
    faithful: bool = False
    token_weight: float = 1.0
    region_weight: float = 1.0
    alignment_weight: float = 1.0

    @property
    def weights(self) -> tuple[float, float, float]:
        """The weights of the losses, in the order of `ViLBERTPretraining`."""
        return self.token_weight, self.region_weight, self.alignment_weight

    def check(self) -> None:
        """Raises ValueError if the options contradict each other."""
        check_number("overlap", self.overlap or 0.0, 0, 1)
        for name, weight in zip(("token", "region", "alignment"), self.weights, strict=True):
            check_number(f"{name}_weight", weight, 0, math.inf)
        if not any(self.weights):
            raise ValueError("token_weight, region_weight and alignment_weight are all 0: nothing would be learned")
        if self.faithful and self.negatives == "image":
            raise ValueError("--faithful replaces captions, as the original's code does: leave out --negatives image")


@dataclass(frozen=True)
class ViLBERTSchedule(PretrainingSchedule):
    """The training schedule of ViLBERT.

    Args:
        steps: Optimizer steps; by default 3,000 for the small variants, 60,000 for all others.
        batch_size: Captions in a step over all processes, half of them with their own image; by default 64 for
            the small variants, 512 for all others.
        learning_rate: Peak learning rate of AdamW; by default 1e-3 for the small variants, 1e-4 for all others.
        backbone_lr_scale: Learning rate scale of the weights that came from the BERT.
        weight_decay: Weight decay of the weight matrices only.
        warmup_ratio: Fraction of the steps in which the learning rate rises linearly from 0; then it decays linearly.
    """

    backbone_lr_scale: float = 0.1
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1

    def __post_init__(self) -> None:
        check_number("warmup_ratio", self.warmup_ratio, 0, 1)
        check_number("weight_decay", self.weight_decay, 0, math.inf)
        check_number("backbone_lr_scale", self.backbone_lr_scale, 0, math.inf)


@dataclass(frozen=True)
class CaptionLoading:
    """How captions and regions become batches.

    Args:
        max_tokens: Maximum number of tokens of a caption.
        max_regions: Maximum number of regions of an image.
        validation_fraction: Fraction of the images held out for validation where the captions name no split.
        data_fraction: Fraction of the training images to use, chosen by a hash of the image id: those of a smaller
            fraction are among those of a larger one (table 3 of the paper: 0.25, 0.5 and 1).
        validation_pairs: Fixed pairs of held-out images, rounded up to whole batches; 0 for no validation.
        workers: Data loader processes; auto: two for a CPU, more for a GPU.
        seed: Random seed of the initial weights, the pairs and the masks.
    """

    max_tokens: int = 36
    max_regions: int = 36
    validation_fraction: float = 0.02
    data_fraction: float = 1.0
    validation_pairs: int = 1024
    workers: Workers = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("validation_fraction", self.validation_fraction, 0, 1)
        check_number("data_fraction", self.data_fraction, 0, 1)
        check_number("validation_pairs", self.validation_pairs, 0, math.inf)
