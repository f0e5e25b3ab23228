"""What is predicted from the two streams: hidden words, hidden regions, alignment, and the tasks of 12-in-1.

ViLBERT, sections 3.1 and 3.2; the task heads are those of facebookresearch/vilbert-multi-task (`VILBertForVLTasks`).
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.models.transformer import ACTIVATIONS, NOT_ATTENDED, Activation, initialise

Fusion = Literal["mul", "sum"]
POOLED_DROPOUT = 0.1  # written into the original's code, whatever its configuration says


def transform(dim: int, activation: Activation, norm_eps: float = 1e-12) -> nn.Sequential:
    """The layer before a vocabulary of words or regions."""
    return nn.Sequential(nn.Linear(dim, dim), ACTIVATIONS[activation](), nn.LayerNorm(dim, norm_eps))


class WordHead(nn.Module):
    """Scores of every word of the vocabulary, by the word embeddings themselves (BERT)."""

    def __init__(self, dim: int, vocabulary: int, activation: Activation, norm_eps: float) -> None:
        super().__init__()
        self.transform = transform(dim, activation, norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, x: Float[Tensor, "places dim"], words: Float[Tensor, "vocabulary dim"]
    ) -> Float[Tensor, "places vocabulary"]:
        return F.linear(self.transform(x), words, self.bias)


class RegionHead(nn.Module):
    """Scores of the detector's classes, or a region's feature, or scores of visual tokens."""

    def __init__(self, dim: int, targets: int, activation: Activation) -> None:
        super().__init__()
        self.transform = transform(dim, activation)
        self.decoder = nn.Linear(dim, targets)

    def forward(self, x: Float[Tensor, "places dim"]) -> Float[Tensor, "places targets"]:
        return self.decoder(self.transform(x))


def fused(
    text: Float[Tensor, "batch joint"], vision: Float[Tensor, "batch joint"], fusion: Fusion
) -> Float[Tensor, "batch joint"]:
    """Both pooled streams as one vector (ViLBERT, section 3.1: their product)."""
    return text * vision if fusion == "mul" else text + vision


class AlignmentHead(nn.Module):
    """Does the caption describe the image? Class 0 says yes and class 1 no, as in the original."""

    def __init__(self, joint_dim: int, fusion: Fusion, dropout: float = POOLED_DROPOUT) -> None:
        super().__init__()
        self.fusion: Fusion = fusion
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(joint_dim, 2)

    def forward(self, text: Float[Tensor, "batch joint"], vision: Float[Tensor, "batch joint"]) -> Tensor:
        return self.classifier(self.dropout(fused(text, vision, self.fusion)))


class TaskOutput(NamedTuple):
    """Scores for every kind of task."""

    vqa: Float[Tensor, "batch 3129"]
    gqa: Float[Tensor, "batch 1533"]
    score: Float[Tensor, "batch 1"]  # VCR and retrieval choose the pair with the highest
    pairs: Float[Tensor, "half_batch 2"] | None  # NLVR2: of rows 0 and 1, of rows 2 and 3, ...; None for odd batches
    entailment: Float[Tensor, "batch 3"]
    regions: Float[Tensor, "batch regions 1"]  # which region is meant
    words: Float[Tensor, "batch words 1"]


class TaskHeads(nn.Module):
    """The heads of 12-in-1, from the outputs of a ViLBERT.

    Args:
        text_dim: Features of a word.
        vision_dim: Features of a region.
        joint_dim: Features of either pooled stream.
        fusion: How the pooled streams become one vector.
    """

    def __init__(self, text_dim: int, vision_dim: int, joint_dim: int, fusion: Fusion) -> None:
        super().__init__()
        self.fusion: Fusion = fusion
        self.dropout = nn.Dropout(POOLED_DROPOUT)
        self.vqa = answers(joint_dim, 2 * joint_dim, 3129)
        self.gqa = answers(joint_dim, 2 * joint_dim, 1533)
        self.pairs = answers(2 * joint_dim, 2 * joint_dim, 2)
        self.score = nn.Linear(joint_dim, 1)
        self.entailment = nn.Linear(joint_dim, 3)
        self.regions = nn.Linear(vision_dim, 1)
        self.words = nn.Linear(text_dim, 1)
        self.apply(initialise)

    def forward(
        self,
        words: Float[Tensor, "batch words text_dim"],
        regions: Float[Tensor, "batch regions vision_dim"],
        text: Float[Tensor, "batch joint"],
        vision: Float[Tensor, "batch joint"],
        regions_attended: Bool[Tensor, "batch regions"],
    ) -> TaskOutput:
        pooled = self.dropout(fused(text, vision, self.fusion))
        hidden = (~regions_attended).to(regions.dtype).unsqueeze(2) * NOT_ATTENDED
        return TaskOutput(
            vqa=self.vqa(pooled),
            gqa=self.gqa(pooled),
            score=self.score(pooled),
            pairs=self.pairs(pooled.view(-1, 2 * pooled.shape[1])) if len(pooled) % 2 == 0 else None,
            entailment=self.entailment(pooled),
            regions=self.regions(self.dropout(regions)) + hidden,
            words=self.words(self.dropout(words)),
        )


def answers(dim: int, hidden: int, classes: int) -> nn.Sequential:
    """Two layers (ViLBERT, section 3.3: the head of VQA)."""
    return nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.LayerNorm(hidden, 1e-12), nn.Linear(hidden, classes))
