"""Audio-visual correspondence: are an image and a second of audio from the same moment? (L3-Net, section 2)"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from comodal.data.batch import AudioVisualBatch
from comodal.objectives.contrastive import compute_contrastive_loss
from comodal.objectives.frozen_parts import FrozenPartsObjective


def compute_correspondence_loss(logits: Float[Tensor, "batch 2"], is_match: Bool[Tensor, "batch"]) -> dict[str, Tensor]:
    """Cross-entropy over mismatch and match, and the accuracy (chance level: 0.5)."""
    logits, target = logits.float(), is_match.long()
    return {"loss": F.cross_entropy(logits, target), "accuracy": (logits.argmax(-1) == target).float().mean()}


class AudioVisualCorrespondence(FrozenPartsObjective):
    """The paper's objective: one image and one second of audio per sample, half of them matched.

    Needs a model whose output for (image, audio) has `logits` of (batch, 2): mismatch, match. With frozen towers, only
    the layers after them are trained.
    """

    def forward(self, batch: AudioVisualBatch) -> dict[str, Tensor]:
        return compute_correspondence_loss(self.model(batch.image, batch.audio).logits, batch.is_match)


class AllPairs(nn.Module):
    """Scores every image of a batch with every audio: the towers run on B matched pairs, the fusion network on B x B.

    Departs from the paper: the margin of a pair is its match logit minus its mismatch logit. A softmax over the batch
    compares the margin of a matched pair with those of the other audio and of the other images (symmetric InfoNCE). It
    ignores a constant added to all margins, so the paper's cross-entropy is added, with half of its weight on the
    matched pairs. Clips of one source video are not used as negatives of each other. In evaluation the loss and the
    accuracy are the paper's, on its pairs.

    Training requires batches of matched pairs (`MatchedPairSampler`), and a model with L3-Net's
    `compute_image_features`, `compute_audio_features` and `fuse_all_pairs`.

    Args:
        model: The model to train.
        pair_weight: Weight of the cross-entropy.
    """

    def __init__(self, model: nn.Module, pair_weight: float = 1.0) -> None:
        super().__init__()
        self.model: Any = model  # its towers are no part of Module's interface
        self.pair_weight = pair_weight

    def forward(self, batch: AudioVisualBatch) -> dict[str, Tensor]:
        if not self.training:
            return compute_correspondence_loss(self.model(batch.image, batch.audio).logits, batch.is_match)
        logits = self.model.fuse_all_pairs(
            self.model.compute_image_features(batch.image), self.model.compute_audio_features(batch.audio)
        )
        margins = logits[..., 1].float() - logits[..., 0].float()
        negatives = batch.source_ids[:, None] != batch.source_ids
        contrastive = compute_contrastive_loss(margins, negatives, batch.is_match)
        pairs = compute_all_pairs_loss(margins, negatives)
        return {
            "loss": contrastive.loss + self.pair_weight * pairs["loss"],
            "contrastive_loss": contrastive.loss,
            "pair_loss": pairs["loss"],
            "contrastive_accuracy": contrastive.accuracy,
            "accuracy": pairs["accuracy"],
        }


def compute_all_pairs_loss(
    margins: Float[Tensor, "batch batch"], negatives: Bool[Tensor, "batch batch"]
) -> dict[str, Tensor]:
    """Cross-entropy and accuracy; matched pairs (the diagonal) and all mismatched pairs have equal total weight."""
    matched, count = margins.diagonal(), negatives.sum().clamp(min=1)
    losses = F.softplus(-matched).mean(), (F.softplus(margins) * negatives).sum() / count
    correct = (matched > 0).float().mean(), ((margins < 0) & negatives).sum() / count
    return {"loss": torch.stack(losses).mean(), "accuracy": torch.stack(correct).mean()}
