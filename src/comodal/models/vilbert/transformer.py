"""Self- and cross-attention, and the post-norm transformer layer (BERT; ViLBERT, figure 2).

One layer class serves the text stream, the vision stream and both directions of co-attention: the source of keys and
values is an argument.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64, Integer, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Literal["gelu", "relu", "swish"]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"gelu": nn.GELU, "relu": nn.ReLU, "swish": nn.SiLU}
Mask: TypeAlias = Bool[Tensor, "_batch _tokens"] | Integer[Tensor, "_batch _tokens"] | None  # None: no padding
Index: TypeAlias = Int64[Tensor, "_chosen"] | None  # row x length + column, each once; None: all tokens
MASK_BIAS = -10_000.0  # added to the logits of padding, as in the original


class AttentionGates(NamedTuple):
    """Gating factors of the features of queries and keys."""

    queries: Float[Tensor, "batch inner"]
    keys: Float[Tensor, "batch inner"]


class Attention(nn.Module):
    """Multi-head attention from one sequence to another, or to itself."""

    def __init__(self, dim: int, context_dim: int, inner_dim: int, heads: int, dropout: float = 0.1) -> None:
        super().__init__()
        if inner_dim % heads:
            raise ValueError(f"inner_dim ({inner_dim}) must be a multiple of heads ({heads})")
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(dim, inner_dim)
        self.key = nn.Linear(context_dim, inner_dim)
        self.value = nn.Linear(context_dim, inner_dim)
        self.output = nn.Linear(inner_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys context_dim"],
        context_mask: Bool[Tensor, "batch keys"] | None,
        gates: AttentionGates | None = None,
        index: Index = None,
        context_index: Index = None,
    ) -> Float[Tensor, "batch queries dim"] | Float[Tensor, "selected dim"]:
        """`context_mask` is None without padding; only then a GPU can use its fastest kernel.

        With an index, only those tokens of `x` (or of `context`) are projected, and only those queries are returned.
        """
        queries, keys = self.project_queries_and_keys(x, context, gates, index, context_index)
        values = self.split_heads(project_tokens(self.value, context, context_index))
        dropout = self.dropout if self.training else 0.0
        on_cpu = queries.device.type == "cpu"
        if on_cpu and (queries.dtype == torch.bfloat16 or dropout):  # the fused kernel is slower than its parts there
            attention_output = F.dropout(compute_attention_weights(queries, keys, context_mask), dropout) @ values
        else:
            key_mask = None if context_mask is None else make_key_mask(context_mask)
            attention_output = F.scaled_dot_product_attention(queries, keys, values, key_mask, dropout)
        return self.output(select_tokens(attention_output.transpose(1, 2).flatten(2), index))

    def project_queries_and_keys(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys context_dim"],
        gates: AttentionGates | None = None,
        index: Index = None,
        context_index: Index = None,
    ) -> tuple[Float[Tensor, "batch heads queries size"], Float[Tensor, "batch heads keys size"]]:
        """Projects and gates queries and keys."""
        queries, keys = project_tokens(self.query, x, index), project_tokens(self.key, context, context_index)
        if gates is not None:
            queries, keys = queries * gates.queries.unsqueeze(1), keys * gates.keys.unsqueeze(1)
        return self.split_heads(queries), self.split_heads(keys)

    def split_heads(self, x: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch heads tokens size"]:
        """Splits features into heads."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def compute_weights(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys context_dim"],
        context_mask: Bool[Tensor, "batch keys"] | None,
        gates: AttentionGates | None = None,
        index: Index = None,
        context_index: Index = None,
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The attention weights, without dropout."""
        return compute_attention_weights(
            *self.project_queries_and_keys(x, context, gates, index, context_index), context_mask
        )


def select_tokens(
    x: Float[Tensor, "batch tokens dim"], index: Index
) -> Float[Tensor, "selected dim"] | Float[Tensor, "batch tokens dim"]:
    """Selects the tokens of an index as one flat sequence; all tokens without an index."""
    return x if index is None else x.flatten(0, 1).index_select(0, index)


def scatter_tokens(
    x: Float[Tensor, "selected dim"] | Float[Tensor, "batch tokens dim"],
    index: Index,
    batch: int | torch.SymInt,
    tokens: int | torch.SymInt,
) -> Float[Tensor, "batch tokens dim"]:
    """Scatters selected tokens to their positions; the others are zero. Sizes are symbolic during export."""
    if index is None:
        return x
    return x.new_zeros(batch * tokens, x.shape[1]).index_copy_(0, index, x).view(batch, tokens, -1)


def project_tokens(
    layer: nn.Module, x: Float[Tensor, "batch tokens dim"], index: Index
) -> Float[Tensor, "batch tokens inner"]:
    """Applies a layer to the tokens of an index; the others are zero."""
    return scatter_tokens(layer(select_tokens(x, index)), index, *x.shape[:2])


def compute_attention_weights(
    queries: Float[Tensor, "batch heads queries size"],
    keys: Float[Tensor, "batch heads keys size"],
    context_mask: Bool[Tensor, "batch keys"] | None,
) -> Float[Tensor, "batch heads queries keys"]:
    """The attention weights of queries over keys."""
    scores = queries @ keys.mT / queries.shape[-1] ** 0.5
    return (scores if context_mask is None else scores.masked_fill(~make_key_mask(context_mask), -torch.inf)).softmax(
        -1
    )


def make_key_mask(context_mask: Bool[Tensor, "batch keys"]) -> Bool[Tensor, "batch 1 1 keys"]:
    """The keys that can be attended to; all keys of a sequence that is only padding."""
    return (context_mask | ~context_mask.any(1, keepdim=True))[:, None, None]


def to_bool_mask(mask: Mask, tokens: Shaped[Tensor, "batch tokens ..."]) -> Bool[Tensor, "batch tokens"] | None:
    """Converts the attention mask of tokens (or regions) to booleans: True, or 1 as in Hugging Face's tokenizers.

    Raises:
        TypeError: It is no tensor, or neither boolean nor integer.
        ValueError: It is not of the tokens' shape, or an integer is neither 0 nor 1.
    """
    if mask is None:
        return mask
    if not isinstance(mask, Tensor):
        raise TypeError(f"an attention mask of type {type(mask).__name__}: pass a tensor (batch, tokens)")
    if not torch.compiler.is_compiling() and mask.shape != tokens.shape[:2]:
        raise ValueError(f"an attention mask of shape {tuple(mask.shape)} for a batch of {tuple(tokens.shape[:2])}")
    if mask.dtype == torch.bool:
        return mask
    if mask.is_floating_point() or mask.is_complex():
        raise TypeError(f"an attention mask of {mask.dtype}: pass booleans, or integers that are 0 or 1")
    if bool(((mask != 0) & (mask != 1)).any()):
        raise ValueError("an attention mask of integers holds 1 where there is a token and 0 where there is none")
    return mask.bool()


class TransformerLayer(nn.Module):
    """Attention and a feed-forward network, each with a residual connection and post-normalization (BERT).

    Args:
        dim: Width of the stream that this layer updates.
        context_dim: Width of the stream that it attends to.
        inner_dim: Width of queries, keys and values.
        heads: Number of attention heads.
        intermediate: Units of the feed-forward network.
        activation: Activation of the feed-forward network.
        dropout: Dropout before each residual connection.
        attention_dropout: Dropout of the attention weights.
        norm_eps: Epsilon of layer normalization.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        inner_dim: int,
        heads: int,
        intermediate: int,
        activation: Activation = "gelu",
        dropout: float = 0.1,
        attention_dropout: float = 0.1,
        norm_eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.attention = Attention(dim, context_dim, inner_dim, heads, attention_dropout)
        self.attention_norm = nn.LayerNorm(dim, norm_eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, intermediate), ACTIVATIONS[activation](), nn.Linear(intermediate, dim)
        )
        self.norm = nn.LayerNorm(dim, norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys context_dim"],
        context_mask: Bool[Tensor, "batch keys"] | None,
        gates: AttentionGates | None = None,
        index: Index = None,
        context_index: Index = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Returns the updated stream.

        Args:
            x: Stream that this layer updates.
            context: Stream that it attends to.
            context_mask: Attention mask of `context`; None without padding.
            gates: Gates of queries and keys, for dynamic attention.
            index: Tokens of `x` to compute; the others are zeros. This skips padding.
            context_index: All unpadded tokens of `context`, or None.
        """
        attention_output = self.attention(x, context, context_mask, gates, index, context_index)
        updated = self.attention_norm(select_tokens(x, index) + self.dropout(attention_output))
        updated = self.norm(updated + self.dropout(self.feed_forward(updated)))
        return scatter_tokens(updated, index, *x.shape[:2])


class TextGates(nn.Module):
    """Gates for the vision stream's attention, computed from the caption (`dynamic_attention` of the original code).

    Departs from the original: a caption without tokens has a mean of zero, where the original divides by zero.
    """

    def __init__(self, text_dim: int, inner_dim: int) -> None:
        super().__init__()
        self.query = nn.Linear(text_dim, inner_dim)
        self.key = nn.Linear(text_dim, inner_dim)

    def forward(
        self, hidden_states: Float[Tensor, "batch length dim"], token_mask: Bool[Tensor, "batch length"] | None
    ) -> AttentionGates:
        if token_mask is None:
            mean = hidden_states.mean(1)
        else:
            present = token_mask.unsqueeze(2).to(hidden_states.dtype)
            mean = (hidden_states * present).sum(1) / present.sum(1).clamp(min=1)
        return AttentionGates(1 + self.query(mean).sigmoid(), 1 + self.key(mean).sigmoid())


@contextmanager
def record_attention(model: nn.Module) -> Iterator[dict[str, Float[Tensor, "batch heads queries keys"]]]:
    """Context manager that collects the attention weights of every forward pass, by module name.

    The weights are computed in addition to the forward pass; outside the context a model has no overhead.

    Args:
        model: Any module that contains Attention.
    """
    maps: dict[str, Tensor] = {}

    def record(name: str, module: nn.Module, arguments: tuple, _output: Tensor) -> None:
        assert isinstance(module, Attention)
        maps[name] = module.compute_weights(*arguments).detach()

    handles = [
        module.register_forward_hook(partial(record, name))
        for name, module in model.named_modules()
        if isinstance(module, Attention)
    ]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def init_weights(module: nn.Module, std: float = 0.02) -> None:
    """Initializes weights from a normal distribution and biases with zero. The std is BERT's, and the original's."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=std)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
