"""The pretext tasks: closed forms, numbers by hand, a plain contrast, and batches in which nothing is hidden."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from comodal.data.batch import CaptionBatch, TokenInput
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig, ViLBERTConfig
from comodal.objectives.alignment import compute_alignment_loss
from comodal.objectives.masked import (
    RegionNegatives,
    compute_masked_class_loss,
    compute_masked_contrastive_loss,
    compute_masked_distribution_loss,
    compute_masked_feature_loss,
    draw_region_negatives,
)
from comodal.objectives.pretraining import ViLBERTPretraining, count_target_columns

FEATURES, CLASSES, TOKENS, WORDS = 6, 5, 8, 40
CONFIG = ViLBERTConfig(
    vocabulary=WORDS,
    positions=20,
    text=StreamConfig(16, 2, 2, 24),
    vision=StreamConfig(12, 1, 3, 20),
    joint_dim=20,
    joint_heads=5,
    co_attention_layers=((0, 1),),
    region_feature_dim=FEATURES,
    region_targets=CLASSES,
)
SINGLE = SingleStreamConfig(WORDS, 20, 0, 2, StreamConfig(16, 2, 2, 24), 0, TOKENS, TOKENS + len(TokenInput))


def batch(
    words_hidden: tuple[int, ...] = (1, 9), regions_hidden: tuple[int, ...] = (2, 7), pairs: int = 2
) -> CaptionBatch:
    """Captions of 7 words with images of 4 rows: flat places 0 and 4 are whole images."""
    generator = torch.Generator().manual_seed(len(words_hidden))
    places, count = torch.tensor(regions_hidden, dtype=torch.int64), len(regions_hidden)
    return CaptionBatch(
        token_ids=torch.randint(1, WORDS, (pairs, 7), generator=generator),
        token_types=torch.zeros(pairs, 7, dtype=torch.int64),
        token_mask=torch.ones(pairs, 7, dtype=torch.bool),
        region_features=torch.randn(pairs, 4, FEATURES, generator=generator),
        spatials=torch.rand(pairs, 4, 5, generator=generator),
        region_mask=torch.ones(pairs, 4, dtype=torch.bool),
        image_rows=torch.arange(pairs),
        is_match=torch.arange(pairs) % 2 == 0,
        masked_token_indices=torch.tensor(words_hidden, dtype=torch.int64),
        token_targets=torch.randint(1, WORDS, (len(words_hidden),), generator=generator),
        masked_region_indices=places,
        feature_targets=torch.randn(count, FEATURES, generator=generator),
        class_targets=torch.randn(count, CLASSES, generator=generator).softmax(1),
        visual_token_targets=torch.randint(TOKENS, (count,), generator=generator),
        visual_tokens=torch.randint(TOKENS + len(TokenInput), (pairs, 4), generator=generator),
        unpadded_token_indices=torch.arange(7 * pairs),
        unpadded_region_indices=torch.arange(4 * pairs),
        keys=tuple(f"caption {i}, image {i}" for i in range(pairs)),
    )


def objective(*targets: str, config: ViLBERTConfig = CONFIG) -> ViLBERTPretraining:
    torch.manual_seed(0)
    columns = sum(count_target_columns(targets, FEATURES, CLASSES, TOKENS).values())
    return ViLBERTPretraining(ViLBERT(replace(config, region_targets=columns)), targets).eval()


def test_equal_scores_cost_the_log_of_the_choices():
    zeros = torch.zeros(3, 7)
    assert compute_masked_class_loss(zeros, torch.tensor([1, 2, 3])).loss.item() == pytest.approx(math.log(7))
    one_hot = F.one_hot(torch.tensor([1, 2, 3]), 7).float()
    assert compute_masked_distribution_loss(zeros, one_hot).loss.item() == pytest.approx(math.log(7))
    assert compute_masked_distribution_loss(zeros, torch.full((3, 7), 1 / 7)).loss.item() == pytest.approx(0, abs=1e-6)
    assert compute_alignment_loss(
        torch.zeros(4, 2), torch.tensor([True, False, True, True])
    ).loss.item() == pytest.approx(math.log(2))


def test_class_0_is_a_pair_that_belongs_together():
    scores = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [9.0, -9.0]])
    right = compute_alignment_loss(scores, torch.tensor([True, False, True]))
    assert right.loss < 1e-6
    assert right.accuracy == 1
    assert compute_alignment_loss(scores, torch.tensor([True, False, False])).accuracy == pytest.approx(2 / 3)


def test_features_are_the_mean_square_over_places_and_features():
    predicted, target = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [5.0, 5.0]])
    found = compute_masked_feature_loss(predicted, target)
    assert found.loss.item() == pytest.approx((0 + 4 + 25 + 25) / 4)
    assert found.accuracy == 0.5  # (0, 0) is nearer to (1, 0) than to its own (5, 5)


def test_contrast_by_hand():
    regions = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 2.0]])
    rows, exist = torch.tensor([[1, 2], [0, 0]]), torch.tensor([[True, True], [True, False]])
    predicted = torch.tensor([[1.0, -1.0], [0.0, 3.0]])
    # place 0 hides region 0: scores 1, against -1 and 0; place 1 hides region 1: score 3, against 0 and nothing
    first = math.log(math.e + math.exp(-1) + 1) - 1
    second = math.log(math.exp(3) + 1) - 3
    found = compute_masked_contrastive_loss(predicted, regions, torch.tensor([0, 1]), RegionNegatives(rows, exist))
    assert found.loss.item() == pytest.approx((first + second) / 2)
    assert found.accuracy == 1


def drawn(candidates: Tensor, places: list[int], count: int = 100, seed: int = 0) -> RegionNegatives:
    return draw_region_negatives(torch.tensor(places), candidates, count, torch.Generator().manual_seed(seed))


def test_negatives_are_every_other_region_and_no_other():
    candidates = torch.tensor([[False, True, True, False], [False, True, True, True], [False, True, False, False]])
    negatives = drawn(candidates, [1, 6, 9], 1000)
    assert negatives.rows.shape == (3, 1000)
    across, inside = negatives.rows[:, :700], negatives.rows[:, 700:]
    assert [set(row.tolist()) for row in across] == [{5, 6, 7, 9}, {1, 2, 9}, {1, 2, 5, 6, 7}]
    assert [set(row.tolist()) for row in inside[:2]] == [{2}, {5, 7}]
    assert negatives.exists.tolist() == [[True] * 1000, [True] * 1000, [True] * 700 + [False] * 300]
    counts = across[0].bincount(minlength=10)[[5, 6, 7, 9]]
    assert ((counts - 175).abs() < 60).all(), "equal odds: 175 of each, five deviations are 57"
    assert torch.equal(negatives.rows, drawn(candidates, [1, 6, 9], 1000).rows)
    assert not torch.equal(negatives.rows, drawn(candidates, [1, 6, 9], 1000, seed=1).rows)


def test_a_batch_of_one_image_has_negatives_from_itself():
    negatives = drawn(torch.tensor([[False, True, True, True]]), [2])
    assert not negatives.exists[:, :70].any()
    assert set(negatives.rows[negatives.exists].tolist()) == {1, 3}
    alone = drawn(torch.tensor([[False, True]]), [1])
    assert not alone.exists.any()
    found = compute_masked_contrastive_loss(torch.ones(1, 2), torch.ones(2, 2), torch.tensor([1]), alone)
    assert found.loss == 0


def originals_contrast(predicted: Tensor, regions: Tensor, place: int, negatives: list[int]) -> Tensor:
    """One place at a time."""
    scores = torch.stack([predicted @ regions[row] for row in [place, *negatives]])
    return -scores.log_softmax(0)[0]


def test_contrast_is_computed_with_what_was_hidden(monkeypatch: pytest.MonkeyPatch):
    pretraining, given = objective("contrast"), batch()
    rows = torch.tensor([[1, 7], [2, 3]])
    fixed = RegionNegatives(rows, torch.ones_like(rows, dtype=torch.bool))
    monkeypatch.setattr("comodal.objectives.pretraining.draw_region_negatives", lambda *_: fixed)
    shown = given.region_features.flatten(0, 1).clone()
    shown[2], shown[7] = given.feature_targets
    model = pretraining.model
    output = model(*arguments(given))
    predicted = model.region_head(output.region_states.flatten(0, 1)[[2, 7]])
    expected = [originals_contrast(predicted[0], shown, 2, [1, 7]), originals_contrast(predicted[1], shown, 7, [2, 3])]
    assert_close(pretraining(given)["region_loss"], torch.stack(expected).mean())


def arguments(given: CaptionBatch) -> tuple[Tensor, ...]:
    return (
        given.token_ids,
        given.token_types,
        given.token_mask,
        given.region_features,
        given.spatials,
        given.region_mask,
    )


TARGETS = [("classes",), ("features",), ("contrast",), ("tokens",), ("tokens", "classes", "features")]


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
@pytest.mark.parametrize("given", [batch(), batch((), ()), batch((3,), (), 1), batch((), (1,), 1)])
def test_whatever_is_hidden_everything_is_finite_and_every_parameter_has_a_gradient(
    targets: tuple[str, ...], given: CaptionBatch
):
    pretraining = objective(*targets)
    metrics = pretraining(given)
    assert all(torch.isfinite(value) for value in metrics.values())
    metrics["loss"].backward()
    for name, parameter in pretraining.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    if not len(given.masked_token_indices):
        assert metrics["token_loss"] == 0
    if not len(given.masked_region_indices):
        assert metrics["region_loss"] == 0


@pytest.mark.parametrize("targets", TARGETS, ids="-".join)
def test_nothing_hidden_is_finite_in_bf16(targets: tuple[str, ...]):
    with torch.autocast("cpu", torch.bfloat16):
        metrics = objective(*targets)(batch((), ()))
    assert all(torch.isfinite(value) for value in metrics.values())
    metrics["loss"].backward()


def test_targets_are_columns_of_the_head_and_their_losses_are_added():
    together, given = objective("tokens", "features"), batch()
    head = together.model.region_head.decoder
    assert head.out_features == TOKENS + FEATURES
    summed = 0.0
    for target, columns in {"tokens": slice(0, TOKENS), "features": slice(TOKENS, None)}.items():
        alone = objective(target)
        weights = together.model.state_dict()
        for name in ("region_head.decoder.weight", "region_head.decoder.bias"):
            weights[name] = weights[name][columns]
        alone.model.load_state_dict(weights)
        summed += alone(given)["region_loss"]
        if target == "tokens":
            assert alone(given)["region_accuracy"] == together(given)["region_accuracy"]
    assert_close(together(given)["region_loss"], summed)


def test_the_loss_is_the_weighted_sum():
    pretraining, given = objective("classes"), batch()
    pretraining.weights = torch.tensor([0.5, 2.0, 3.0])
    metrics = pretraining(given)
    parts = [0.5 * metrics["token_loss"], 2 * metrics["region_loss"], 3 * metrics["alignment_loss"]]
    assert_close(metrics["loss"], sum(parts))


def test_what_stands_at_hidden_places_of_the_targets_alone_matters():
    """The order of the places is free, and another target changes its own loss alone."""
    pretraining, given = objective("classes"), batch((1, 9, 12), (2, 7))
    turned = replace(
        given, masked_token_indices=given.masked_token_indices.flip(0), token_targets=given.token_targets.flip(0)
    )
    assert_close(pretraining(turned)["loss"], pretraining(given)["loss"])
    other = pretraining(replace(given, token_targets=given.token_targets % (WORDS - 1) + 1))
    assert other["token_loss"] != pretraining(given)["token_loss"]
    assert other["region_loss"] == pretraining(given)["region_loss"]


@pytest.mark.parametrize("kind", ["two streams", "one stream"])
def test_a_model_of_visual_tokens_learns_a_batch_by_heart(kind: str):
    torch.manual_seed(0)
    two = replace(CONFIG, num_visual_tokens=TOKENS + len(TokenInput), region_targets=TOKENS)
    model = ViLBERT(two) if kind == "two streams" else SingleStream(SINGLE)
    pretraining, given = ViLBERTPretraining(model, ("tokens",)).eval(), batch()
    optimizer = torch.optim.Adam(pretraining.parameters(), 3e-3)
    for _ in range(60):
        metrics = pretraining(given)
        optimizer.zero_grad()
        metrics["loss"].backward()
        optimizer.step()
    accuracies = [pretraining(given)[f"{what}_accuracy"] for what in ("token", "region", "alignment")]
    assert accuracies == [1.0, 1.0, 1.0]
    assert all(parameter.grad is not None for parameter in pretraining.parameters())
    changed = replace(given, region_features=torch.randn_like(given.region_features))
    assert pretraining(changed)["loss"] == pretraining(given)["loss"], "features are not read"


def test_the_same_batch_has_the_same_negatives_and_another_seed_others():
    given = batch()
    first, again = objective("contrast"), objective("contrast")
    assert first(given)["region_loss"] == again(given)["region_loss"]
    again.seed = 1
    assert first(given)["region_loss"] != again(given)["region_loss"]


def test_targets_that_cannot_be():
    with pytest.raises(ValueError, match=r"region targets \[.*\]: one or more distinct targets are required"):
        objective()
    with pytest.raises(ValueError, match=r"region targets \[.*\]: one or more distinct targets are required"):
        objective("tokens", "tokens")
    with pytest.raises(ValueError, match=r"the region head has 5 outputs, which cannot be .'features': 6."):
        ViLBERTPretraining(ViLBERT(CONFIG), ("features",))(batch())
    none = replace(batch(), class_targets=torch.zeros(2, 0))
    with pytest.raises(ValueError, match="0 means that the region store has none"):
        objective("classes")(none)
    with pytest.raises(ValueError, match="the regions have no visual tokens"):
        objective("tokens")(replace(batch(), visual_token_targets=torch.zeros(0, dtype=torch.int64)))
