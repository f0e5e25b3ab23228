"""Prediction heads on the two streams: masked tokens, masked regions, alignment, and the tasks of 12-in-1.

ViLBERT, sections 3.1 and 3.2; the task heads are those of facebookresearch/vilbert-multi-task (`VILBertForVLTasks`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from comodal.errors import check_number
from comodal.models.vilbert.transformer import ACTIVATIONS, MASK_BIAS, Activation, init_weights

Fusion = Literal["mul", "sum"]
PooledFusion = Literal["mul", "sum", "single"]  # single: one stream, both pooled outputs are the same
TASK_HEAD_DROPOUT = 0.1  # hard-coded in the original, regardless of its configuration
INITIAL_TEMPERATURE = 0.07  # initial temperature of the contrastive head: CLIP's and ALBEF's
MAX_LOGIT_SCALE = 100.0  # maximum scale of its similarities, CLIP's: a temperature of 0.01
VILBERT_BETA_DROPOUT = 0.5  # vilbert_beta's, between the layers of its answer head


def make_prediction_transform(dim: int, activation: Activation, norm_eps: float = 1e-12) -> nn.Sequential:
    """The layer before the output layer of the token or region head."""
    return nn.Sequential(nn.Linear(dim, dim), ACTIVATIONS[activation](), nn.LayerNorm(dim, norm_eps))


class TokenHead(nn.Module):
    """Logits over the vocabulary, with the token embeddings as output weights (BERT)."""

    def __init__(self, dim: int, vocabulary: int, activation: Activation, norm_eps: float) -> None:
        super().__init__()
        self.transform = make_prediction_transform(dim, activation, norm_eps)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(
        self, x: Float[Tensor, "positions dim"], token_embeddings: Float[Tensor, "vocabulary dim"]
    ) -> Float[Tensor, "positions vocabulary"]:
        return F.linear(self.transform(x), token_embeddings, self.bias)


class RegionHead(nn.Module):
    """Logits of the detector's classes, a region's feature, or logits of visual tokens."""

    def __init__(self, dim: int, targets: int, activation: Activation) -> None:
        super().__init__()
        self.transform = make_prediction_transform(dim, activation)
        self.decoder = nn.Linear(dim, targets)

    def forward(self, x: Float[Tensor, "positions dim"]) -> Float[Tensor, "positions targets"]:
        return self.decoder(self.transform(x))


def fuse_pooled_streams(
    pooled_text: Float[Tensor, "batch joint"], pooled_vision: Float[Tensor, "batch joint"], fusion: PooledFusion
) -> Float[Tensor, "batch joint"]:
    """Fuses both pooled streams into one vector (ViLBERT, section 3.1: their product)."""
    if fusion == "single":
        return pooled_text
    return pooled_text * pooled_vision if fusion == "mul" else pooled_text + pooled_vision


class AlignmentHead(nn.Module):
    """Logits of image-text alignment. Class 0 is a match and class 1 a mismatch, as in the original."""

    def __init__(self, joint_dim: int, fusion: PooledFusion, dropout: float = TASK_HEAD_DROPOUT) -> None:
        super().__init__()
        self.fusion: PooledFusion = fusion
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(joint_dim, 2)

    def forward(self, pooled_text: Float[Tensor, "batch joint"], pooled_vision: Float[Tensor, "batch joint"]) -> Tensor:
        return self.classifier(self.dropout(fuse_pooled_streams(pooled_text, pooled_vision, self.fusion)))


class ContrastiveHead(nn.Module):
    """Projects the mean encodings of both streams to one space (image-text contrastive learning, ALBEF, section 3.2).

    Two linear projections to unit length, and a trainable temperature. Departs from ALBEF: the mean over the tokens
    instead of the first token, and no momentum encoder.
    """

    def __init__(self, text_dim: int, vision_dim: int, dim: int) -> None:
        super().__init__()
        self.text = nn.Linear(text_dim, dim)
        self.vision = nn.Linear(vision_dim, dim)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(INITIAL_TEMPERATURE)))

    def embed_text(self, encoding: Float[Tensor, "batch text_dim"]) -> Float[Tensor, "batch dim"]:
        """Returns unit-length embeddings of texts."""
        return F.normalize(self.text(encoding).float())

    def embed_image(self, encoding: Float[Tensor, "batch vision_dim"]) -> Float[Tensor, "batch dim"]:
        """Returns unit-length embeddings of images."""
        return F.normalize(self.vision(encoding).float())

    def forward(
        self, text: Float[Tensor, "texts text_dim"], image: Float[Tensor, "images vision_dim"]
    ) -> Float[Tensor, "texts images"]:
        """The cosine similarity of every text with every image, divided by the temperature."""
        return self.log_scale.exp().clamp(max=MAX_LOGIT_SCALE) * (self.embed_text(text) @ self.embed_image(image).T)


def compute_mean_encoding(
    hidden_states: Float[Tensor, "batch tokens dim"], mask: Bool[Tensor, "batch tokens"] | None
) -> Float[Tensor, "batch dim"]:
    """The mean over the unmasked tokens; None stands for a mask of all tokens."""
    if mask is None:
        return hidden_states.mean(1)
    present = mask.unsqueeze(2).to(hidden_states.dtype)
    return (hidden_states * present).sum(1) / present.sum(1).clamp(min=1)


MAX_HEAD_SIZE = 1 << 20
HeadKind = Literal["answers", "linear", "pairs", "regions", "tokens"]


@dataclass(frozen=True)
class Head:
    """The specification of a task head.

    Args:
        name: Name of its weights.
        kind: `answers` is two layers on both pooled streams (VQA), `linear` is one (VCR, retrieval, entailment);
            `pairs` is two layers on both pooled streams of rows 0 and 1, of rows 2 and 3, ... (NLVR2); `regions` and
            `tokens` score each token of a stream (referring expressions).
        outputs: Number of outputs.
        hidden: Units between the two layers of `answers` and `pairs`.
        activation: Activation between them. The original's first code (vilbert_beta) uses relu without normalization.
    """

    name: str
    kind: HeadKind
    outputs: int
    hidden: int = 0
    activation: Literal["gelu", "relu"] = "gelu"

    def __post_init__(self) -> None:
        check_number("outputs", self.outputs, 1, MAX_HEAD_SIZE)
        check_number("hidden", self.hidden, 0, MAX_HEAD_SIZE)


def make_twelve_in_one_heads(joint_dim: int) -> tuple[Head, ...]:
    """The heads of facebookresearch/vilbert-multi-task, for pooled streams of this width."""
    return (
        Head("vqa", "answers", 3129, 2 * joint_dim),
        Head("gqa", "answers", 1533, 2 * joint_dim),
        Head("pairs", "pairs", 2, 2 * joint_dim),
        Head("score", "linear", 1),  # VCR and retrieval choose the pair with the highest score
        Head("entailment", "linear", 3),
        Head("regions", "regions", 1),
        Head("tokens", "tokens", 1),
    )


class TaskHeads(nn.ModuleDict):
    """Task heads on the outputs of a ViLBERT, each under its name.

    Args:
        text_dim: Width of the text stream.
        vision_dim: Width of the vision stream.
        joint_dim: Width of either pooled stream.
        fusion: Fusion of the pooled streams. With `single` the pooled output has no dropout, as in the original.
        heads: Specifications of the heads; by default those of 12-in-1.
    """

    def __init__(
        self, text_dim: int, vision_dim: int, joint_dim: int, fusion: PooledFusion, heads: Sequence[Head] | None = None
    ) -> None:
        heads = make_twelve_in_one_heads(joint_dim) if heads is None else heads
        inputs = {"answers": joint_dim, "linear": joint_dim, "pairs": 2 * joint_dim}
        inputs |= {"regions": vision_dim, "tokens": text_dim}
        super().__init__({head.name: build_head(inputs[head.kind], head) for head in heads})
        self.fusion: PooledFusion = fusion
        self.kinds: dict[str, HeadKind] = {head.name: head.kind for head in heads}
        self.dropout = TASK_HEAD_DROPOUT
        self.apply(init_weights)

    def forward(
        self,
        name: str,
        token_states: Float[Tensor, "batch length text_dim"],
        region_states: Float[Tensor, "batch regions vision_dim"],
        pooled_text: Float[Tensor, "batch joint"],
        pooled_vision: Float[Tensor, "batch joint"],
        region_mask: Bool[Tensor, "batch regions"] | None,
    ) -> Float[Tensor, "rows *outputs"]:
        """The outputs of one head: (batch, outputs), (batch / 2, outputs) of pairs, (batch, tokens) of a stream."""
        kind, head = self.kinds[name], self[name]
        if kind == "regions":
            scores = head(self.apply_dropout(region_states)).squeeze(2)
            padding = 0.0 if region_mask is None else (~region_mask).to(region_states.dtype) * MASK_BIAS
            return scores + padding
        if kind == "tokens":
            return head(self.apply_dropout(token_states)).squeeze(2)
        pooled = fuse_pooled_streams(pooled_text, pooled_vision, self.fusion)
        if self.fusion != "single":
            pooled = self.apply_dropout(pooled)
        return head(pooled.view(-1, 2 * pooled.shape[1]) if kind == "pairs" else pooled)

    def apply_dropout(self, x: Tensor) -> Tensor:
        """Applies dropout in training."""
        return F.dropout(x, self.dropout, self.training)


def build_head(inputs: int, head: Head) -> nn.Module:
    """Builds the layers of one head."""
    if head.kind not in ("answers", "pairs"):
        return nn.Linear(inputs, head.outputs)
    if head.hidden < 1:
        raise ValueError(f"head {head.name!r} has two layers, so `hidden` must be positive")
    first, last = nn.Linear(inputs, head.hidden), nn.Linear(head.hidden, head.outputs)
    if head.activation == "relu":
        return nn.Sequential(first, nn.ReLU(), nn.Dropout(VILBERT_BETA_DROPOUT), last)
    return nn.Sequential(first, nn.GELU(), nn.LayerNorm(head.hidden, 1e-12), last)
