"""ViLBERT's sizes, invariances, frozen layers, visual tokens and bad arguments; parity has its own file."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch.testing import assert_close

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model, save_model
from comodal.models.convert.convert_vilbert import map_names_to_original
from comodal.models.vilbert.heads import TaskHeads
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.streams import OutputIndices
from comodal.models.vilbert.transformer import record_attention
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import (
    StreamConfig,
    ViLBERTConfig,
    make_base_config,
    make_large_config,
    make_small_vilbert_config,
)

Model = TypeVar("Model", ViLBERT, SingleStream)
TINY = ViLBERTConfig(
    vocabulary=50,
    positions=20,
    text=StreamConfig(16, 3, 2, 24),
    vision=StreamConfig(12, 2, 3, 20),
    joint_dim=20,
    joint_heads=5,
    co_attention_layers=((0, 1), (1, 2)),
    region_feature_dim=7,
    region_targets=9,
)


def made(config: ViLBERTConfig, seed: int = 0) -> ViLBERT:
    torch.manual_seed(seed)
    return randomised(ViLBERT(config))


def randomised(model: Model) -> Model:
    model.eval()
    for parameter in model.parameters():  # larger than BERT's, so that everything matters
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def inputs(
    config: ViLBERTConfig, batch: int = 3, words: int = 6, regions: int = 5, seed: int = 1
) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(batch, regions, config.region_feature_dim, generator=generator)
    if config.num_visual_tokens:
        seen = torch.randint(config.num_visual_tokens, (batch, regions), generator=generator)
    return [
        torch.randint(config.vocabulary, (batch, words), generator=generator),
        torch.zeros(batch, words, dtype=torch.int64),
        torch.arange(words) < torch.tensor([[words], [4], [2]])[:batch],
        seen,
        torch.rand(batch, regions, 5, generator=generator),
        torch.arange(regions) < torch.tensor([[regions], [3], [1]])[:batch],
    ]


@pytest.mark.parametrize("kind", [torch.int64, torch.uint8, torch.int32])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_masks_of_whole_numbers_are_the_same_as_booleans(kind: torch.dtype, precision: torch.dtype):
    """What every Hugging Face tokenizer gives."""
    model, batch = made(TINY), inputs(TINY)
    whole = [tensor.to(kind) if tensor.dtype == torch.bool else tensor for tensor in batch]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        for ours, theirs in zip(model(*whole), model(*batch), strict=True):
            assert torch.equal(ours, theirs)


def test_masks_of_other_kinds_are_refused():
    model, batch = made(TINY), inputs(TINY)
    for place in (2, 5):
        additive = [*batch]
        additive[place] = (~batch[place]).float() * -10_000
        with pytest.raises(TypeError):  # float32: ours, or that of the check of shapes that every test run adds
            model(*additive)
        additive[place] = (~batch[place]).long() * -10_000
        with pytest.raises(ValueError, match="1 where there is a token and 0 where there is none"):
            model(*additive)


def test_no_mask_says_that_nothing_is_padding():
    for config in VARIANTS:
        model, batch = made(config), inputs(config)
        everywhere = [torch.ones_like(x) if x.dtype == torch.bool else x for x in batch]
        nowhere = [None if x.dtype == torch.bool else x for x in batch]
        for ours, theirs in zip(model(*nowhere), model(*everywhere), strict=True):
            assert_close(ours, theirs)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def never_used(config: ViLBERTConfig) -> int:
    """Parameters of the original's `q_dense1` and `q_dense2`."""
    text, vision = config.text.dim, config.vision.dim
    return len(config.co_attention_layers) * (text + vision) * (config.joint_dim + 1)


@pytest.mark.parametrize(
    ("config", "pretraining", "with_tasks"),
    [
        (make_base_config(2), 160_782_973, 178_752_443),
        (make_base_config(4), 205_413_501, 223_382_971),
        (make_base_config(6), 250_044_029, 268_013_499),
        (make_base_config(8), 294_674_557, 312_644_027),
        (make_large_config(2), 396_672_381, None),
        (make_large_config(4), 451_270_013, None),
        (make_large_config(6), 505_867_645, None),
    ],
)
def test_parameter_counts_are_the_originals(config: ViLBERTConfig, pretraining: int, with_tasks: int | None):
    with torch.device("meta"):
        model = ViLBERT(config)
        heads = TaskHeads(config.text.dim, config.vision.dim, config.joint_dim, config.fusion)
    assert count(model) + never_used(config) == pretraining
    if with_tasks is not None:
        assert count(model) + never_used(config) + count(heads) == with_tasks


def test_the_default_is_the_papers_base_model():
    assert ViLBERTConfig() == make_base_config(6)
    assert make_base_config(2).co_attention_layers == ((0, 10), (1, 11))  # config/bert_base_2layer_2conect.json
    assert make_large_config(2).co_attention_layers == ((0, 22), (1, 23))


VARIANTS = [TINY, replace(TINY, dynamic_attention=True), replace(TINY, num_visual_tokens=11)]


@pytest.mark.parametrize("config", VARIANTS, ids=["features", "dynamic", "tokens"])
def test_what_is_masked_cannot_matter(config: ViLBERTConfig):
    model = made(config)
    words, segments, words_attended, regions, locations, regions_attended = inputs(config)
    other = inputs(config, seed=2)
    changed_words = torch.where(words_attended, words, other[0])
    hidden = regions_attended if config.num_visual_tokens else regions_attended.unsqueeze(2)
    changed_regions = torch.where(hidden, regions, other[3])
    changed_locations = torch.where(regions_attended.unsqueeze(2), locations, other[4])
    before = model(words, segments, words_attended, regions, locations, regions_attended)
    after = model(changed_words, segments, words_attended, changed_regions, changed_locations, regions_attended)
    assert_close(after.token_states[words_attended], before.token_states[words_attended], rtol=0, atol=1e-6)
    assert_close(after.region_states[regions_attended], before.region_states[regions_attended], rtol=0, atol=1e-6)
    assert_close(
        (after.pooled_text, after.pooled_vision), (before.pooled_text, before.pooled_vision), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("config", VARIANTS, ids=["features", "dynamic", "tokens"])
def test_padding_cannot_matter(config: ViLBERTConfig):
    model = made(config)
    words, segments, words_attended, regions, locations, regions_attended = inputs(config, batch=1)
    short = model(
        words[:, :4], segments[:, :4], words_attended[:, :4], regions[:, :3], locations[:, :3], regions_attended[:, :3]
    )
    words_attended[:, 4:], regions_attended[:, 3:] = False, False
    padded = model(words, segments, words_attended, regions, locations, regions_attended)
    assert_close(
        (padded.pooled_text, padded.pooled_vision), (short.pooled_text, short.pooled_vision), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("config", VARIANTS, ids=["features", "dynamic", "tokens"])
def test_no_words_and_no_regions_are_finite_with_finite_gradients(config: ViLBERTConfig):
    model = made(config)
    words, segments, words_attended, *rest = inputs(config)
    rest[2][:] = False
    output = model(words, segments, torch.zeros_like(words_attended), *rest)
    assert all(torch.isfinite(part).all() for part in output)
    sum(part.sum() for part in output).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_without_co_attention_the_text_does_not_know_the_image():
    model = made(replace(TINY, co_attention=False))
    mine, other = inputs(TINY), inputs(TINY, seed=2)
    assert torch.equal(model(*mine).token_states, model(*mine[:3], *other[3:]).token_states)
    model = made(TINY)
    assert not torch.equal(model(*mine).token_states, model(*mine[:3], *other[3:]).token_states)


def test_rows_of_a_batch_do_not_know_each_other():
    model, batch = made(replace(TINY, dynamic_attention=True)), inputs(TINY)
    together = model(*batch)
    for row in range(3):
        alone = model(*(part[row : row + 1] for part in batch))
        for mine, theirs in zip(alone, together, strict=True):
            assert_close(mine[0], theirs[row], rtol=0, atol=1e-5)


SCHEDULES = [((0, 1), (1, 2)), ((1, 2),), ((0, 0),), ((1, 1), (1, 1)), ()]


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_pooled_streams_alone_are_those_of_the_whole(schedule: tuple, dynamic: bool):
    model = made(replace(TINY, co_attention_layers=schedule, dynamic_attention=dynamic))
    batch = inputs(TINY)
    text, vision = model.encode_text(*batch[:3]), model.encode_image(*batch[3:])
    whole = model.fuse(text, vision)
    assert_close(model.fuse_pooled(text, vision), (whole.pooled_text, whole.pooled_vision), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("kind", ["two streams", "gated", "one stream"])
def test_padding_and_places_that_nobody_wants_can_be_left_out(kind: str, schedule: tuple):
    """What is wanted, the pooled streams and all gradients are as if everything was computed."""
    config = replace(TINY, co_attention_layers=schedule, dynamic_attention=kind == "gated")
    if kind == "one stream":
        config = replace(config, num_visual_tokens=11)
        model = randomised(SingleStream(SingleStreamConfig(50, 20, 0, 2, StreamConfig(16, 2, 2, 24), 0, 9, 11)))
    else:
        model = made(config)
    batch = inputs(config)
    index = [batch[column].flatten().nonzero().squeeze(1) for column in (2, 5)]
    wanted = OutputIndices(torch.tensor([2, 5, 9, 13]), torch.tensor([1, 7]))  # rows of 6 words and of 5 regions
    found = []
    for of_words, of_regions, few in ((None, None, None), (*index, wanted), (index[0], None, wanted), (*index, None)):
        text = model.encode_text(*batch[:3], index=of_words)
        output = model.fuse(text, model.encode_image(*batch[3:], index=of_regions), few)
        words, regions = (
            output.token_states.flatten(0, 1)[wanted.token_indices],
            output.region_states.flatten(0, 1)[wanted.region_indices],
        )
        chosen = (words, regions, output.pooled_text, output.pooled_vision)
        loss = sum(part.square().sum() for part in chosen)
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        found.append((chosen, torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)))
    for chosen, gradients in found[1:]:
        assert_close(chosen, found[0][0], rtol=1e-5, atol=1e-5)
        assert_close(gradients, found[0][1], rtol=1e-4, atol=1e-4)


def test_what_nobody_wants_is_not_computed():
    model, batch = made(TINY), inputs(TINY)
    words, regions = torch.tensor([2, 8]), torch.tensor([6])
    output = model.fuse(model.encode_text(*batch[:3]), model.encode_image(*batch[3:]), OutputIndices(words, regions))
    assert output.token_states.flatten(0, 1).any(1).nonzero().squeeze(1).tolist() == [
        0,
        2,
        6,
        8,
        12,
    ]  # 0, 6, 12: the first
    assert output.region_states.flatten(0, 1).any(1).nonzero().squeeze(1).tolist() == [0, 5, 6, 10]


def test_frozen_layers_keep_their_weights_and_change_nothing_else():
    late = replace(TINY, co_attention_layers=((1, 2),))
    frozen, free = made(replace(late, frozen_text_layers=1, frozen_vision_layers=1)), made(late)
    for model in (frozen, free):
        output = model(*inputs(TINY))
        scores = (
            model.compute_token_logits(output.token_states.flatten(0, 1)).sum()
            + model.region_head(output.region_states[0]).sum()
        )
        (scores + model.alignment_head(output.pooled_text, output.pooled_vision).square().sum()).backward()
    learns = {name for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert learns == {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    everything = dict(free.named_parameters())
    still = everything.keys() - learns
    assert {name.rsplit(".", 1)[0].split(".attention")[0].split(".feed")[0] for name in still} == {
        "text_embeddings.positions",
        "text_embeddings.token_types",
        "text_embeddings.norm",
        "text_layers.0",
        "text_layers.0.norm",
        "vision_layers.0",
        "vision_layers.0.norm",
        "region_embeddings.features",
        "region_embeddings.spatials",
        "region_embeddings.norm",
    }
    for name in learns - {"text_embeddings.tokens.weight"}:  # which learns from the word head alone
        assert_close(frozen.get_parameter(name).grad, everything[name].grad)


def test_visual_tokens_are_rows_of_a_table():
    config = replace(TINY, num_visual_tokens=11)
    reads_tokens, reads_features = made(config), made(replace(TINY, region_feature_dim=11))
    weights = reads_tokens.state_dict()
    weights["region_embeddings.features.weight"] = weights.pop("region_embeddings.visual_tokens.weight").T
    weights["region_embeddings.features.bias"] = torch.zeros(12)
    reads_features.load_state_dict(weights)
    batch = inputs(config)
    one_hot = torch.nn.functional.one_hot(batch[3], 11).float()
    for mine, theirs in zip(reads_tokens(*batch), reads_features(*batch[:3], one_hot, *batch[4:]), strict=True):
        assert_close(mine, theirs)


def test_position_of_the_first_word():
    from_two, from_zero = made(replace(TINY, positions=22, first_position=2)), made(TINY)
    weights = from_two.state_dict()
    weights["text_embeddings.positions.weight"] = weights["text_embeddings.positions.weight"][2:]
    from_zero.load_state_dict(weights)
    assert torch.equal(from_two(*inputs(TINY)).token_states, from_zero(*inputs(TINY)).token_states)


def test_a_saved_model_is_the_same(tmp_path: Path):
    model = made(replace(TINY, dynamic_attention=True, fusion="sum"))
    save_model(model, tmp_path, {})
    loaded = ViLBERT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert torch.equal(loaded(*inputs(TINY)).token_states, model(*inputs(TINY)).token_states)


def test_bf16_is_close():
    model, batch = ViLBERT(make_small_vilbert_config(vocabulary=50, region_feature_dim=7)).eval(), inputs(replace(TINY))
    exact = model(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(*batch)
    for mine, theirs in zip(rounded, exact, strict=True):
        assert torch.isfinite(mine).all()
        error = (mine.float() - theirs).norm() / theirs.norm()
        assert error < 0.02  # a step of bf16 is 0.4 to 0.8 %


def test_recorded_maps_have_a_name_for_every_layer():
    model = made(TINY)
    with record_attention(model) as maps:
        model(*inputs(TINY))
    text, vision = [f"text_layers.{i}.attention" for i in range(3)], [f"vision_layers.{i}.attention" for i in range(2)]
    co = [f"co_layers.{i}.{stream}.attention" for i in range(2) for stream in ("text", "vision")]
    assert maps.keys() == {*text, *vision, *co}
    assert maps["co_layers.1.text.attention"].shape == (3, 5, 6, 5)
    assert maps["co_layers.1.vision.attention"].shape == (3, 5, 5, 6)
    hidden = ~inputs(TINY)[5]
    assert maps["co_layers.0.text.attention"].movedim(-1, 1)[hidden].max() == 0


@pytest.mark.slow
@pytest.mark.parametrize("config", VARIANTS, ids=["features", "dynamic", "tokens"])
@pytest.mark.filterwarnings("default")
def test_compiled_it_is_the_same(config: ViLBERTConfig):
    model, batch = made(config), inputs(config)
    compiled = torch.compile(model)
    for mine, theirs in zip(compiled(*batch), model(*batch), strict=True):
        assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    sum(part.sum() for part in compiled(*batch)).backward()


def test_bad_arguments():
    with pytest.raises(ValueError, match="a text of 21 tokens; this model has positions for 20"):
        made(TINY)(*inputs(TINY, words=21))
    with pytest.raises(ValueError, match="task_ids are required only if the model has task tokens"):
        made(replace(TINY, task_tokens=4))(*inputs(TINY))
    with pytest.raises(ValueError, match="must be sorted, within 2 layers of vision and 3 of text"):
        replace(TINY, co_attention_layers=((0, 1), (2, 2)))
    with pytest.raises(ValueError, match="must be sorted"):
        replace(TINY, co_attention_layers=((1, 2), (0, 2)))
    with pytest.raises(ValueError, match=r"each entry is \(vision layer, text layer\)"):
        replace(TINY, co_attention_layers=((1,),))
    with pytest.raises(ValueError, match="only layers before the first co-attention"):
        replace(TINY, frozen_text_layers=2)


def test_another_model_is_refused(tmp_path: Path):
    save_model(SingleStream(SINGLE), tmp_path, {})
    assert isinstance(load_model(tmp_path), SingleStream)
    with pytest.raises(CheckpointError, match="holds a SingleStream, not a ViLBERT"):
        ViLBERT.from_pretrained(tmp_path)


SINGLE = SingleStreamConfig(50, 20, 0, 2, StreamConfig(16, 2, 2, 24), 0, 8, 11)


def test_a_single_stream_reads_tokens_as_further_words():
    """It is the text stream of a BERT over one longer sequence, once embeddings and masks are joined."""
    torch.manual_seed(0)
    single = SingleStream(SINGLE).eval()
    batch = inputs(replace(TINY, num_visual_tokens=11))
    x = torch.cat([single.text_embeddings(*batch[:2]), single.region_embeddings(*batch[3:5])], 1)
    attended = torch.cat([batch[2], batch[5]], 1)
    for layer in single.text_layers:
        x = layer(x, x, attended)
    output = single(*batch)
    assert torch.equal(torch.cat([output.token_states, output.region_states], 1), x)
    assert torch.equal(output.pooled_text, single.pooler(x[:, 0]))
    assert "text_layers.1.norm.bias" in map_names_to_original(single)  # so that a BERT fills it
