"""Captions with the regions of their image, unmasked and matched, for contrastive learning."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from comodal.data.batch import ImageTextBatch
from comodal.data.captions.caption_dataset import CaptionDataset


class ImageTextDataset:
    """Batches of any (epoch, index), in the order of a `CaptionDataset` without masking and negatives.

    Args:
        dataset: The captions and images.

    Attributes:
        text_features: Features of each caption from a frozen text encoder; no columns if they are computed in training.
        encoded, starts: The token ids of all captions one after another, and where each of them starts.
    """

    def __init__(self, dataset: CaptionDataset) -> None:
        masking, negatives = dataset.masking, dataset.pairs.mismatches.fraction
        assert not (masking.token_probability or masking.region_probability or negatives), "masked or mismatched pairs"
        self.dataset, self.encoded, self.starts = dataset, dataset.encoded, dataset.starts
        self.text_features: Float[Tensor, "captions features"] = torch.empty(len(dataset), 0)

    @property
    def num_truncated(self) -> int:
        """Number of captions that were longer than the maximum and were truncated."""
        return self.dataset.num_truncated

    def __len__(self) -> int:
        """Samples in an epoch: as many as captions."""
        return len(self.dataset)

    def batch(self, positions: Sequence[tuple[int, int]]) -> ImageTextBatch:
        """The samples of these (epoch, index), in this order."""
        batch = self.dataset.batch(positions)
        captions = [int(self.dataset.pairs.get_epoch(epoch).captions[index]) for epoch, index in positions]
        return ImageTextBatch(
            token_ids=batch.token_ids,
            token_mask=batch.token_mask,
            text_features=self.text_features[captions],
            region_features=batch.region_features,
            region_mask=batch.region_mask,
            image_rows=batch.image_rows,
            keys=batch.keys,
        )
