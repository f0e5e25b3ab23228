"""The objective of a dual encoder: captions and images of a batch find each other."""

from typing import Any

from torch import Tensor, nn

from comodal.data.batch import CaptionImageBatch, ImageTextBatch
from comodal.objectives.in_batch_contrastive import compute_in_batch_contrastive_loss


class ImageTextContrastive(nn.Module):
    """The contrastive loss of captions and images, with the negatives of all processes.

    Requires a model with the methods of `DualEncoder`. Captions of one image are not negatives of each other.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model  # its methods are no part of Module's interface

    def forward(self, batch: ImageTextBatch | CaptionImageBatch) -> dict[str, Tensor]:
        model = self.model
        text_features = batch.text_features
        if not text_features.shape[1]:
            text_features = model.compute_text_features(batch.token_ids, batch.token_mask)
        text = model.embed_text_features(text_features)
        if isinstance(batch, ImageTextBatch):
            image = model.embed_image(batch.region_features, batch.region_mask)
        else:
            image_features = batch.image_features
            if not image_features.shape[1]:
                image_features = model.compute_image_features(batch.pixels)
            image = model.embed_image_features(image_features)
        log_temperature = model.temperature()
        contrastive = compute_in_batch_contrastive_loss(text, image, batch.image_rows, log_temperature)
        return {
            "loss": contrastive.loss,
            "accuracy": contrastive.accuracy,
            "temperature": log_temperature.detach().exp(),
        }
