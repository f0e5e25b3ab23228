"""Contrastive learning of a joint embedding space of images and audio, with negatives from all processes (InfoNCE)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from comodal.data.batch import AudioVisualBatch
from comodal.distributed import all_gather_rows
from comodal.objectives.avc import compute_all_pairs_loss, compute_correspondence_loss
from comodal.objectives.contrastive import compute_contrastive_loss
from comodal.objectives.frozen_parts import FrozenPartsObjective

INITIAL_TEMPERATURE = 0.07  # CLIP (Radford et al., ICML 2021), section 2.5
MAX_INVERSE_TEMPERATURE = 100.0  # the same section: a lower temperature made training unstable


class ContrastiveEmbedding(FrozenPartsObjective):
    """Compares the image of each example with the audio of all examples of a batch, and its audio with all images.

    Departs from the paper (Objects that Sound), whose loss is that of `AudioVisualCorrespondence`: the similarity of
    the embeddings is divided by a learned temperature, and a softmax over the batches of all processes must find the
    matched one in both directions. Examples of one source video are not negatives of each other. The layer that decides
    from a distance is trained by the cross-entropy of all pairs, with fixed embeddings, so that it does not change
    them. In evaluation the loss and the accuracy are the paper's, on its pairs.

    Training requires batches of matched pairs (`MatchedPairSampler`), and a model with AVE-Net's
    `compute_image_features`, `compute_audio_features`, `score_all_pairs` and `fuse_all_pairs`.
    """

    def __init__(self, model: nn.Module, frozen_parts: tuple[str, ...] = ()) -> None:
        super().__init__(model, frozen_parts)
        self.log_inverse_temperature = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def forward(self, batch: AudioVisualBatch) -> dict[str, Tensor]:
        model: Any = self.model  # its methods are no part of Module's interface
        if not self.training:
            return compute_correspondence_loss(model(batch.image, batch.audio).logits, batch.is_match)
        own = (model.compute_image_features(batch.image).float(), model.compute_audio_features(batch.audio).float())
        image, audio = all_gather_rows(torch.cat(own, 1)).split([own[0].shape[1], own[1].shape[1]], 1)
        source_ids, is_match = all_gather_rows(batch.source_ids), all_gather_rows(batch.is_match.byte()).bool()
        negatives = source_ids[:, None] != source_ids
        inverse_temperature = self.log_inverse_temperature.clamp(max=math.log(MAX_INVERSE_TEMPERATURE)).exp()
        with torch.autocast(image.device.type, enabled=False):  # similarities in bf16 have two digits
            scores = inverse_temperature * model.score_all_pairs(image, audio)
            logits = model.fuse_all_pairs(image.detach(), audio.detach())
        contrastive = compute_contrastive_loss(scores, negatives, is_match)
        pairs = compute_all_pairs_loss(logits[..., 1] - logits[..., 0], negatives)
        return {
            "loss": contrastive.loss + pairs["loss"],
            "contrastive_loss": contrastive.loss,
            "pair_loss": pairs["loss"],
            "contrastive_accuracy": contrastive.accuracy,
            "accuracy": pairs["accuracy"],
            "temperature": 1 / inverse_temperature.detach(),
        }
