"""ViLBERT's pretraining objective: masked tokens, masked regions, alignment (section 3.2), and a contrastive loss."""

import zlib
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from comodal.data.batch import CaptionBatch
from comodal.models.vilbert.heads import compute_mean_encoding
from comodal.models.vilbert.streams import OutputIndices, UnimodalEncoding
from comodal.models.vilbert.transformer import Index
from comodal.objectives.alignment import compute_alignment_loss
from comodal.objectives.contrastive import ContrastiveLoss, compute_contrastive_loss
from comodal.objectives.masked import (
    MaskedLoss,
    RegionTarget,
    compute_masked_class_loss,
    compute_masked_contrastive_loss,
    compute_masked_distribution_loss,
    compute_masked_feature_loss,
    draw_region_negatives,
)


def count_target_columns(
    targets: Sequence[RegionTarget], features: int, classes: int, tokens: int
) -> dict[RegionTarget, int]:
    """Returns the outputs of the region head for each target; their sum is the model's `region_targets`.

    Args:
        targets: In the order of the head's columns.
        features: Length of a region's feature.
        classes: Number of the detector's classes.
        tokens: Number of the codebook's visual tokens.
    """
    sizes: dict[RegionTarget, int] = {"classes": classes, "features": features, "contrast": features, "tokens": tokens}
    if not targets or len(set(targets)) < len(targets):
        raise ValueError(f"region targets {list(targets)}: name one or more, each once")
    return {target: sizes[target] for target in targets}


MIN_DIM_TO_DROP_PADDING = (
    512  # width of the text stream; in narrower models skipping padding takes longer than computing it
)


def select_unpadded_tokens(attended: Bool[Tensor, "batch tokens"], index: Int64[Tensor, "tokens_there"]) -> Index:
    """Returns the index of the tokens that are not padding, on a CPU only; None stands for all tokens."""
    return index if attended.device.type == "cpu" and index.numel() < attended.numel() else None


class ViLBERTPretraining(nn.Module):
    """The weighted sum of the pretraining losses, with the accuracy of each.

    `region_loss` sums the named targets. `region_accuracy` is that of the first target: the detector's likeliest class,
    the visual token, the nearest of the batch's masked regions (`features`), or the positive among the negatives
    (`contrast`). Accuracies of a batch without masked positions are 0.

    Requires a model with ViLBERT's forward, heads and `config`.

    Args:
        model: The model to train.
        region_targets: One or more targets of masked regions.
        word_weight: Weight of the loss of masked tokens.
        region_weight: Weight of the loss of masked regions.
        alignment_weight: Weight of the alignment loss.
        negatives: Number of regions that `contrast` compares (the original: 128, of which 127 are drawn).
        contrastive_weight: Weight of the contrastive loss between the mean encodings of texts and images before the
            first co-attention layer (not in the paper), over the matched pairs of one process's batch. Captions of one
            image are not negatives of each other. It requires a model with `contrastive_dim`. 0 disables it.
        seed: Random seed of the drawn negatives, used with the keys of a batch.
    """

    weights: Tensor

    def __init__(
        self,
        model: nn.Module,
        region_targets: Sequence[RegionTarget] = ("classes",),
        word_weight: float = 1.0,
        region_weight: float = 1.0,
        alignment_weight: float = 1.0,
        negatives: int = 128,
        contrastive_weight: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        count_target_columns(region_targets, 1, 1, 1)
        self.model: Any = model  # its heads are no part of Module's interface
        self.region_targets = tuple(region_targets)
        weights = torch.tensor([word_weight, region_weight, alignment_weight])
        self.register_buffer("weights", weights, persistent=False)  # on the device, so that no step copies them
        self.negatives = negatives
        self.seed = seed
        self.contrastive_weight = contrastive_weight
        if contrastive_weight and getattr(model, "contrastive_head", None) is None:
            raise ValueError(f"this {type(model).__name__} has no contrastive head: the contrastive weight must be 0")

    def forward(self, batch: CaptionBatch) -> dict[str, Tensor]:
        model = self.model
        regions = batch.tokens if model.config.region_tokens else batch.regions
        is_wide = model.config.text.dim >= MIN_DIM_TO_DROP_PADDING
        of_words = select_unpadded_tokens(batch.words_attended, batch.attended_words) if is_wide else None
        of_regions = select_unpadded_tokens(batch.regions_attended, batch.attended_regions) if is_wide else None
        text = model.text_prefix(batch.words, batch.segments, batch.words_attended, index=of_words)
        vision = model.vision_prefix(regions, batch.locations, batch.regions_attended, index=of_regions)
        wanted = OutputIndices(batch.masked_words, batch.masked_regions) if is_wide else None
        output = model.join(text, vision, wanted)
        words = compute_masked_class_loss(
            model.word_head(output.words.flatten(0, 1)[batch.masked_words]), batch.word_targets
        )
        targets = self.regions(model.region_head(output.regions.flatten(0, 1)[batch.masked_regions]), batch)
        pairs = compute_alignment_loss(model.alignment_head(output.text, output.vision), batch.mismatched)
        region_loss = torch.stack([target.loss for target in targets]).sum()
        losses = torch.stack([words.loss, region_loss, pairs.loss])
        metrics = {
            "loss": (losses * self.weights).sum(),
            "word_loss": words.loss,
            "region_loss": region_loss,
            "alignment_loss": pairs.loss,
            "word_accuracy": words.accuracy,
            "region_accuracy": targets[0].accuracy,
            "alignment_accuracy": pairs.accuracy,
        }
        if self.contrastive_weight:
            compared = self.compare(text, vision, batch)
            metrics["loss"] = metrics["loss"] + self.contrastive_weight * compared.loss
            metrics |= {"contrastive_loss": compared.loss, "contrastive_accuracy": compared.accuracy}
        return metrics

    def compare(self, text: UnimodalEncoding, vision: UnimodalEncoding, batch: CaptionBatch) -> ContrastiveLoss:
        """The contrastive loss of the matched pairs."""
        matched = ~batch.mismatched
        negatives = matched[:, None] & matched & (batch.images[:, None] != batch.images)
        encodings = [compute_mean_encoding(stream.tokens, stream.attended) for stream in (text, vision)]
        return compute_contrastive_loss(self.model.contrastive_head(*encodings), negatives, matched)

    def regions(self, predicted: Float[Tensor, "places columns"], batch: CaptionBatch) -> list[MaskedLoss]:
        """The loss of each target, from its outputs of the region head."""
        features, classes = batch.region_features.shape[1], batch.region_classes.shape[1]
        known = sum(count_target_columns(self.region_targets, features, classes, 0).values())
        columns = count_target_columns(self.region_targets, features, classes, predicted.shape[1] - known)
        if 0 in columns.values() or sum(columns.values()) != predicted.shape[1]:
            raise ValueError(
                f"the region head gives {predicted.shape[1]} numbers, which cannot be {columns} "
                "(region_targets of the model; 0 is what the region store lacks)"
            )
        parts = predicted.split(list(columns.values()), 1)
        return [self.region(target, part, batch) for target, part in zip(columns, parts, strict=True)]

    def region(
        self, target: RegionTarget, predicted: Float[Tensor, "places columns"], batch: CaptionBatch
    ) -> MaskedLoss:
        """The loss of one target."""
        if target == "classes":
            return compute_masked_distribution_loss(predicted, batch.region_classes)
        if target == "features":
            return compute_masked_feature_loss(predicted, batch.region_features)
        if target == "tokens":
            if len(batch.region_tokens) < len(predicted):
                raise ValueError("the regions have no visual tokens; `comodal prepare tokens` makes them")
            return compute_masked_class_loss(predicted, batch.region_tokens)
        candidates = batch.regions_attended.clone()
        candidates[:, 0] = False  # the whole image is never masked
        generator = torch.Generator().manual_seed(zlib.crc32("\n".join((str(self.seed), *batch.keys)).encode()))
        shown = batch.regions.flatten(0, 1).index_copy(0, batch.masked_regions, batch.region_features)
        negatives = draw_region_negatives(batch.masked_regions, candidates, self.negatives, generator)
        return compute_masked_contrastive_loss(predicted, shown, batch.masked_regions, negatives)
