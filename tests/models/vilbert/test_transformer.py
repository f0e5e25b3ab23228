"""Attention against the plain formula; masks, gates and recorded maps."""

import pytest
import torch
from torch.testing import assert_close

from comodal.models.vilbert.transformer import (
    Attention,
    AttentionGates,
    TextGates,
    TransformerLayer,
    record_attention,
)

generator = torch.Generator().manual_seed(0)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def plain(attention: Attention, x: torch.Tensor, context: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
    """Head by head, as the formula stands in Attention Is All You Need; a context of padding alone is not masked."""
    padding = torch.where(attended.any(1, keepdim=True), (1 - attended.double()) * -10_000, 0.0)
    heads = []
    for queries, keys, values in zip(
        attention.query(x).chunk(attention.heads, -1),
        attention.key(context).chunk(attention.heads, -1),
        attention.value(context).chunk(attention.heads, -1),
        strict=True,
    ):
        scores = queries @ keys.transpose(1, 2) / queries.shape[-1] ** 0.5
        heads.append(torch.softmax(scores + padding[:, None], -1).float() @ values)
    return attention.output(torch.cat(heads, -1))


@pytest.fixture
def attention() -> Attention:
    return Attention(dim=12, context_dim=20, inner_dim=24, heads=3).eval()


@pytest.fixture
def attended() -> torch.Tensor:
    return torch.tensor([[True] * 5, [True, True, False, False, False], [False] * 5])  # the last context is empty


def test_the_fast_path_is_the_plain_formula(attention: Attention, attended: torch.Tensor):
    x, context = random(3, 4, 12), random(3, 5, 20)
    ours = attention(x, context, attended)
    assert_close(ours, plain(attention, x, context, attended), rtol=0, atol=1e-6)
    (ours * random(3, 4, 12)).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in attention.parameters())


def test_what_is_masked_cannot_matter(attention: Attention):
    x, context = random(2, 4, 12), random(2, 5, 20)
    attended = torch.tensor([[True, True, False, True, False], [True, False, False, False, False]])
    changed = torch.where(attended.unsqueeze(2), context, random(2, 5, 20) * 10)
    assert torch.equal(attention(x, context, attended), attention(x, changed, attended))


def test_an_empty_context_is_attended_to_as_if_nothing_were_masked(attention: Attention):
    x, context = random(1, 4, 12), random(1, 5, 20)
    everything = torch.ones(1, 5, dtype=torch.bool)
    assert torch.equal(attention(x, context, ~everything), attention(x, context, everything))
    assert_close(attention(x, context, None), attention(x, context, everything), rtol=0, atol=1e-6)
    assert_close(attention.compute_weights(x, context, None), attention.compute_weights(x, context, ~everything))


def test_gates_multiply_queries_and_keys(attention: Attention):
    x, context, attended = random(2, 4, 12), random(2, 5, 20), torch.ones(2, 5, dtype=torch.bool)
    doubled = AttentionGates(torch.full((2, 24), 2.0), torch.full((2, 24), 3.0))
    gated = attention.compute_weights(x, context, attended, doubled)
    queries, keys = attention.project_queries_and_keys(x, context)
    assert_close(gated, (6 * queries @ keys.mT / 8**0.5).softmax(-1))
    assert torch.equal(
        attention(x, context, attended, AttentionGates(torch.ones(2, 24), torch.ones(2, 24))),
        attention(x, context, attended),
    )


def test_gates_come_from_the_words_that_are_there():
    gates = TextGates(text_dim=4, inner_dim=6)
    words = random(2, 3, 4)
    attended = torch.tensor([[True, True, False], [False] * 3])
    queries, keys = gates(words, attended)
    assert_close(queries[0], 1 + gates.query(words[0, :2].mean(0)).sigmoid())
    assert_close(keys[0], 1 + gates.key(words[0, :2].mean(0)).sigmoid())
    assert_close(queries[1], 1 + gates.query.bias.sigmoid())  # no words: their mean is zero, not 0/0


def test_a_layer_is_pytorchs_encoder_layer():
    ours = TransformerLayer(16, 16, 16, 4, 32, norm_eps=1e-5).eval()
    theirs = torch.nn.TransformerEncoderLayer(16, 4, 32, activation="gelu", batch_first=True).eval()
    attention = ours.attention
    projections = (attention.query, attention.key, attention.value)
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in projections]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in projections]))
    for name, module in {
        "self_attn.out_proj": attention.output,
        "norm1": ours.attention_norm,
        "linear1": ours.feed_forward[0],
        "linear2": ours.feed_forward[2],
        "norm2": ours.norm,
    }.items():
        theirs.get_submodule(name).load_state_dict(module.state_dict())
    x, attended = random(2, 5, 16), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    theirs.train()  # its fast path is another function where keys are masked; dropout is off
    for module in theirs.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.MultiheadAttention):
            module.eval()
            module.dropout = 0.0
    assert_close(ours(x, x, attended), theirs(x, src_key_padding_mask=~attended), rtol=1e-5, atol=1e-5)


def test_recorded_weights_are_what_mixes_the_values(attention: Attention, attended: torch.Tensor):
    x, context = random(3, 4, 12), random(3, 5, 20)
    outside = attention(x, context, attended)
    with record_attention(torch.nn.ModuleDict({"one": attention})) as maps:
        inside = attention(x, context, attended)
    assert torch.equal(outside, inside)
    assert list(maps) == ["one"]
    assert maps["one"].shape == (3, 3, 4, 5)
    assert_close(maps["one"].sum(-1), torch.ones(3, 3, 4))
    values = attention.split_heads(attention.value(context))
    assert_close(attention.output((maps["one"] @ values).transpose(1, 2).flatten(2)), inside)
    attention(x[:1], context[:1], attended[:1])
    assert maps["one"].shape[0] == 3, "nothing is recorded outside"


def test_attention_is_dropped_out_only_in_training():
    attention = Attention(8, 8, 8, 2, dropout=0.5)
    x, attended = random(1, 6, 8), torch.ones(1, 6, dtype=torch.bool)
    assert not torch.equal(attention(x, x, attended), attention(x, x, attended))
    attention.eval()
    assert torch.equal(attention(x, x, attended), attention(x, x, attended))


def test_heads_must_divide_the_inner_features():
    with pytest.raises(ValueError, match=r"inner_dim \(10\) must be a multiple of heads \(3\)"):
        Attention(8, 8, 10, 3)
