"""Audio-visual correspondence: do this picture and this sound come from one moment (L3-Net, section 2)?"""

import torch.nn.functional as F
from torch import Tensor, nn

from comodal.data.batch import PairBatch


class Correspondence(nn.Module):
    """Cross-entropy of the two answers, and how often the likelier one is right (half is chance).

    Needs a model whose output for (image, sound) has `logits` of (batch, 2): apart, together.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        logits, target = self.model(batch.image, batch.sound).logits.float(), batch.together.long()
        return {"loss": F.cross_entropy(logits, target), "accuracy": (logits.argmax(-1) == target).float().mean()}
