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
        raise ValueError(f"region targets {list(targets)}: one or more distinct targets are required")
    return {target: sizes[target] for target in targets}


MIN_DIM_TO_DROP_PADDING = (
    512  # width of the text stream; in narrower models skipping padding takes longer than computing it
)


def select_unpadded_tokens(mask: Bool[Tensor, "batch tokens"], index: Int64[Tensor, "unpadded_tokens"]) -> Index:
    """Returns the index of the tokens that are not padding, on a CPU only; None stands for all tokens."""
    return index if mask.device.type == "cpu" and index.numel() < mask.numel() else None


class ViLBERTPretraining(nn.Module):
    """The weighted sum of the pretraining losses, with the accuracy of each.

    `region_loss` sums the named targets. `region_accuracy` is that of the first target: the detector's likeliest class,
    the visual token, the nearest of the batch's masked regions (`features`), or the positive among the negatives
    (`contrast`). Accuracies of a batch without masked positions are 0.

    Requires a model with ViLBERT's forward, heads and `config`.

    Args:
        model: The model to train.
        region_targets: One or more targets of masked regions.
        token_weight: Weight of the loss of masked tokens.
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
        token_weight: float = 1.0,
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
        weights = torch.tensor([token_weight, region_weight, alignment_weight])
        self.register_buffer("weights", weights, persistent=False)  # on the device, so that no step copies them
        self.negatives = negatives
        self.seed = seed
        self.contrastive_weight = contrastive_weight
        if contrastive_weight and getattr(model, "contrastive_head", None) is None:
            raise ValueError(f"this {type(model).__name__} has no contrastive head: the contrastive weight must be 0")

    def forward(self, batch: CaptionBatch) -> dict[str, Tensor]:
        model = self.model
        region_features = batch.visual_tokens if model.config.num_visual_tokens else batch.region_features
        is_wide = model.config.text.dim >= MIN_DIM_TO_DROP_PADDING
        unpadded_tokens = select_unpadded_tokens(batch.token_mask, batch.unpadded_token_indices) if is_wide else None
        unpadded_regions = select_unpadded_tokens(batch.region_mask, batch.unpadded_region_indices) if is_wide else None
        text = model.encode_text(batch.token_ids, batch.token_types, batch.token_mask, index=unpadded_tokens)
        vision = model.encode_image(region_features, batch.spatials, batch.region_mask, index=unpadded_regions)
        output_indices = OutputIndices(batch.masked_token_indices, batch.masked_region_indices) if is_wide else None
        output = model.fuse(text, vision, output_indices)
        token_loss = compute_masked_class_loss(
            model.compute_token_logits(output.token_states.flatten(0, 1)[batch.masked_token_indices]),
            batch.token_targets,
        )
        region_losses = self.compute_region_losses(
            model.region_head(output.region_states.flatten(0, 1)[batch.masked_region_indices]), batch
        )
        alignment_loss = compute_alignment_loss(
            model.alignment_head(output.pooled_text, output.pooled_vision), batch.is_match
        )
        region_loss = torch.stack([region_target.loss for region_target in region_losses]).sum()
        losses = torch.stack([token_loss.loss, region_loss, alignment_loss.loss])
        metrics = {
            "loss": (losses * self.weights).sum(),
            "token_loss": token_loss.loss,
            "region_loss": region_loss,
            "alignment_loss": alignment_loss.loss,
            "token_accuracy": token_loss.accuracy,
            "region_accuracy": region_losses[0].accuracy,
            "alignment_accuracy": alignment_loss.accuracy,
        }
        if self.contrastive_weight:
            contrastive = self.compute_contrastive(text, vision, batch)
            metrics["loss"] = metrics["loss"] + self.contrastive_weight * contrastive.loss
            metrics |= {"contrastive_loss": contrastive.loss, "contrastive_accuracy": contrastive.accuracy}
        return metrics

    def compute_contrastive(
        self, text: UnimodalEncoding, vision: UnimodalEncoding, batch: CaptionBatch
    ) -> ContrastiveLoss:
        """The contrastive loss of the matched pairs."""
        is_match = batch.is_match
        negatives = is_match[:, None] & is_match & (batch.image_rows[:, None] != batch.image_rows)
        encodings = [compute_mean_encoding(stream.hidden_states, stream.mask) for stream in (text, vision)]
        return compute_contrastive_loss(self.model.contrastive_head(*encodings), negatives, is_match)

    def compute_region_losses(
        self, predicted: Float[Tensor, "positions columns"], batch: CaptionBatch
    ) -> list[MaskedLoss]:
        """The loss of each target, from its outputs of the region head."""
        features, classes = batch.feature_targets.shape[1], batch.class_targets.shape[1]
        num_fixed_columns = sum(count_target_columns(self.region_targets, features, classes, 0).values())
        columns = count_target_columns(self.region_targets, features, classes, predicted.shape[1] - num_fixed_columns)
        if 0 in columns.values() or sum(columns.values()) != predicted.shape[1]:
            raise ValueError(
                f"the region head has {predicted.shape[1]} outputs, which cannot be {columns} "
                "(region_targets of the model; 0 means that the region store has none)"
            )
        parts = predicted.split(list(columns.values()), 1)
        return [self.compute_region_loss(target, part, batch) for target, part in zip(columns, parts, strict=True)]

    def compute_region_loss(
        self, target: RegionTarget, predicted: Float[Tensor, "positions columns"], batch: CaptionBatch
    ) -> MaskedLoss:
        """The loss of one target."""
        if target == "classes":
            return compute_masked_distribution_loss(predicted, batch.class_targets)
        if target == "features":
            return compute_masked_feature_loss(predicted, batch.feature_targets)
        if target == "tokens":
            if len(batch.visual_token_targets) < len(predicted):
                raise ValueError("the regions have no visual tokens; `comodal prepare tokens` makes them")
            return compute_masked_class_loss(predicted, batch.visual_token_targets)
        candidates = batch.region_mask.clone()
        candidates[:, 0] = False  # the whole image is never masked
        generator = torch.Generator().manual_seed(zlib.crc32("\n".join((str(self.seed), *batch.keys)).encode()))
        all_features = batch.region_features.flatten(0, 1).index_copy(
            0, batch.masked_region_indices, batch.feature_targets
        )
        negatives = draw_region_negatives(batch.masked_region_indices, candidates, self.negatives, generator)
        return compute_masked_contrastive_loss(predicted, all_features, batch.masked_region_indices, negatives)
