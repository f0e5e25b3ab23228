"""Samples captions of an image from a masked language model (ViLBERT, figure 5; Wang and Cho, 2019).

Sampling starts with a caption of [MASK] tokens only. The first sweep unmasks one token after another, in random order,
each drawn from its distribution given the tokens so far and the image. Every further sweep is one of Gibbs sampling:
each token is masked again and redrawn given all others. The paper's samples are of a pretrained model before
fine-tuning.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from comodal.errors import check_number

ComputeLogits = Callable[[Int64[Tensor, "samples length"], Int64[Tensor, "samples"]], Tensor]


@dataclass(frozen=True)
class SamplingOptions:
    """How captions are sampled.

    Args:
        num_tokens: Number of tokens of a caption.
        num_samples: Number of captions, sampled independently of each other.
        sweeps: Sweeps of Gibbs sampling after the first one, which unmasks.
        temperature: Divides the logits; 0 always takes the likeliest token.
        top_k: Draw among this many of the likeliest tokens; 0 for all.
        seed: Random seed.
    """

    num_tokens: int = 8
    num_samples: int = 5
    sweeps: int = 10
    temperature: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        check_number("num_tokens", self.num_tokens, 1, math.inf)
        check_number("num_samples", self.num_samples, 1, math.inf)
        check_number("sweeps", self.sweeps, 0, math.inf)
        check_number("temperature", self.temperature, 0, math.inf)
        check_number("top_k", self.top_k, 0, math.inf)


def sample_masked_tokens(
    compute_logits: ComputeLogits, mask_id: int, allowed: Bool[Tensor, "vocabulary"], options: SamplingOptions
) -> Int64[Tensor, "samples tokens"]:
    """Draws texts from the conditional distributions of a masked language model.

    With the conditionals of one joint distribution, including those of partly masked texts, every sweep keeps this
    distribution, and so does the first. The conditionals of a trained model belong to no joint distribution exactly.

    Args:
        compute_logits: The logits (samples, vocabulary) at one position of each text, given texts with `mask_id` there.
        mask_id: The id of [MASK].
        allowed: Which tokens can be drawn.
        options: How captions are sampled.

    Returns:
        Token ids, none of which is `mask_id`.
    """
    generator = torch.Generator().manual_seed(options.seed)
    texts = torch.full((options.num_samples, options.num_tokens), mask_id)
    rows = torch.arange(options.num_samples)
    for _ in range(1 + options.sweeps):
        order = torch.rand(options.num_samples, options.num_tokens, generator=generator).argsort(1)
        for positions in order.T:
            texts[rows, positions] = mask_id
            logits = compute_logits(texts, positions).float().cpu().masked_fill(~allowed, -torch.inf)
            texts[rows, positions] = draw_tokens(logits, options, generator)
    return texts


def draw_tokens(
    logits: Float[Tensor, "samples vocabulary"], options: SamplingOptions, generator: torch.Generator
) -> Int64[Tensor, "samples"]:
    """Draws one token of each row."""
    if options.temperature == 0:
        return logits.argmax(1)
    if options.top_k:
        smallest = logits.topk(min(options.top_k, logits.shape[1]), 1).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    return (logits / options.temperature).softmax(1).multinomial(1, generator=generator)[:, 0]
