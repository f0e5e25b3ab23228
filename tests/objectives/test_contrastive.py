"""The contrastive losses within a batch: closed forms, plain double loops, and rows that do not count."""

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from comodal.data.batch import AudioVisualBatch, CaptionBatch
from comodal.data.shards.pair_sampler import MatchedPairSampler
from comodal.data.shards.shard_reader import ShardReader
from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.l3net.l3net import L3Net
from comodal.models.l3net.l3net import make_small_l3net_config as small_l3net
from comodal.models.vilbert.heads import compute_mean_encoding
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.objectives.avc import AllPairs, AudioVisualCorrespondence
from comodal.objectives.contrastive import compute_contrastive_loss
from comodal.objectives.pretraining import ViLBERTPretraining
from comodal.recipes import avc_pretraining, vilbert_pretraining
from comodal.tasks.retrieval.caption_retrieval import evaluate_retrieval
from comodal.tasks.retrieval.gallery import load_retrieval_data
from comodal.training.run import train
from comodal.training.run_log import read_log
from tests.objectives.test_pretraining import CONFIG, SINGLE, batch, objective
from tests.support.small_captions import write_captions
from tests.support.small_world import write_world

EVERY = torch.ones(5, dtype=torch.bool)


def plain_contrast(scores: Tensor, negatives: Tensor, counted: Tensor) -> tuple[float, float]:
    """One row and one column after the other."""
    losses, found = [], []
    for i in counted.nonzero().flatten().tolist():
        for line, others in ((scores[i], negatives[i]), (scores[:, i], negatives[:, i])):
            chosen = [line[j].item() for j in range(len(line)) if j == i or others[j]]
            losses.append(math.log(sum(map(math.exp, chosen))) - line[i].item())
            found.append(line[i].item() == max(chosen))
    return float(np.mean(losses)), float(np.mean(found))


def test_rows_that_cannot_be_told_apart_cost_the_log_of_their_number():
    assert compute_contrastive_loss(torch.full((5, 5), 3.0), EVERY.expand(5, 5), EVERY).loss.item() == pytest.approx(
        math.log(5)
    )


def test_contrast_is_that_of_a_plain_double_loop():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 8, generator=generator)
    groups, counted = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4]), torch.tensor([1, 1, 1, 0, 1, 1, 0, 1]).bool()
    negatives = (groups[:, None] != groups) & counted & counted[:, None]
    found = compute_contrastive_loss(scores, negatives, counted)
    loss, accuracy = plain_contrast(scores, negatives, counted)
    assert found.loss.item() == pytest.approx(loss)
    assert found.accuracy.item() == pytest.approx(accuracy)


def test_the_gradient_is_the_probabilities_less_the_diagonal():
    """Of the cross-entropy: (softmax of rows + softmax of columns - 2 I) / 2B."""
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()
    compute_contrastive_loss(scores, EVERY.expand(5, 5), EVERY).loss.backward()
    expected = (scores.softmax(1) + scores.softmax(0) - 2 * torch.eye(5)) / 10
    assert_close(scores.grad, expected.detach())


@pytest.mark.parametrize("count", [0, 1])
def test_none_and_one_cost_nothing_and_have_a_gradient(count):
    counted = torch.arange(5) < count
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(2)).requires_grad_()
    loss = compute_contrastive_loss(scores, counted & counted[:, None], counted).loss
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None and torch.equal(scores.grad, torch.zeros(5, 5))


def test_the_mean_leaves_out_padding():
    tokens = torch.tensor([[[1.0], [3.0], [9.0]], [[5.0], [7.0], [9.0]]])
    attended = torch.tensor([[True, True, False], [True, True, True]])
    assert compute_mean_encoding(tokens, attended).tolist() == [[2.0], [7.0]]


def pairs_of(sources: list[int], seed: int = 0) -> AudioVisualBatch:
    generator, size = torch.Generator().manual_seed(seed), len(sources)
    image = torch.randint(0, 256, (size, 3, 32, 32), generator=generator, dtype=torch.uint8)
    sound = 0.1 * torch.randn(size, 48_000, generator=generator)
    return AudioVisualBatch(image, sound, torch.ones(size, dtype=torch.bool), torch.tensor(sources), ("key",) * size)


def all_pairs(seed: int = 0) -> AllPairs:
    """In training, but for batch normalization, so that one pair does not depend on the others."""
    torch.manual_seed(seed)
    trained = AllPairs(L3Net(small_l3net(width=4, image_size=32)))
    trained.model.fc2.weight.data *= 40  # margins far from zero
    trained.model.eval()
    return trained


def test_all_pairs_are_those_of_a_plain_double_loop():
    trained, given = all_pairs(), pairs_of([0, 1, 1, 2, 3])
    metrics = trained(given)
    margins, same = torch.zeros(5, 5), given.source_ids[:, None] == given.source_ids
    for i in range(5):
        for j in range(5):
            apart, together = trained.model(given.image[i : i + 1], given.audio[j : j + 1]).logits[0]
            margins[i, j] = (together - apart).detach()
    loss, accuracy = plain_contrast(margins, ~same, EVERY)
    assert metrics["contrastive_loss"].item() == pytest.approx(loss, rel=1e-4)
    assert metrics["contrastive_accuracy"].item() == pytest.approx(accuracy)
    matched = [math.log(1 + math.exp(-margins[i, i])) for i in range(5)]
    apart = [math.log(1 + math.exp(margins[i, j])) for i in range(5) for j in range(5) if not same[i, j]]
    assert metrics["pair_loss"].item() == pytest.approx((np.mean(matched) + np.mean(apart)) / 2, rel=1e-4)
    assert metrics["loss"].item() == pytest.approx(loss + metrics["pair_loss"].item(), rel=1e-4)


def test_equal_images_and_equal_audio_cost_the_log_of_the_batch():
    given = pairs_of([0, 1, 2, 3])
    given = replace(given, image=given.image[:1].expand(4, -1, -1, -1), audio=given.audio[:1].expand(4, -1))
    assert all_pairs()(given)["contrastive_loss"].item() == pytest.approx(math.log(4), rel=1e-5)


def test_clips_of_one_source_are_no_negatives():
    """With two clips of one source there is nothing to compare, and all that is left is the matched pairs."""
    metrics = all_pairs()(pairs_of([7, 7]))
    assert metrics["contrastive_loss"].item() == 0
    assert metrics["contrastive_accuracy"].item() == 1


def test_in_evaluation_it_is_the_papers_objective():
    trained = all_pairs().eval()
    given = replace(pairs_of([0, 1, 2, 3]), is_match=torch.tensor([True, False] * 2))
    assert trained(given) == AudioVisualCorrespondence(trained.model)(given)


def test_matched_pairs_draw_a_clip_as_often_as_its_group_has_others(tmp_path: Path):
    """Clips of three sources, two of them of two clips: the first of any ordered pair. 4.5 standard deviations."""
    shards = ShardReader(write_world(tmp_path / "train", clips=5))
    pairs, draws = MatchedPairSampler(shards, 3), 4000
    drawn = [pairs(0, index) for index in range(draws)]
    assert all(pair.is_match and pair.image_clip == pair.audio_clip for pair in drawn)
    counts = np.bincount([pair.image_clip for pair in drawn], minlength=5)
    expected = np.array([3, 3, 3, 3, 4]) / 16
    assert (abs(counts / draws - expected) < 4.5 * np.sqrt(expected * (1 - expected) / draws)).all()


def test_l3net_is_trained_on_all_pairs_and_validated_on_the_papers(tmp_path: Path):
    write_world(tmp_path / "data" / "train", 12)
    write_world(tmp_path / "data" / "validation", 6, seed=1)
    values = {"data": tmp_path / "data", "variant": "small", "width": 4, "image_size": 16, "batch_size": 8}
    values |= {"objective": "all_pairs", "steps": 2, "validation_pairs": 16, "workers": 0}
    assert train(avc_pretraining.recipe, values, tmp_path / "run", device="cpu", precision="fp32", log_every=1) == 0
    lines = {line["split"]: line for line in read_log(tmp_path / "run" / "metrics.jsonl")}
    assert "contrastive_loss" in lines["train"] and "contrastive_loss" not in lines["validation"]
    assert 0 <= lines["validation"]["accuracy"] <= 1
    assert isinstance(load_model(tmp_path / "run"), L3Net)


def contrasted(weight: float = 1.0) -> ViLBERTPretraining:
    torch.manual_seed(0)
    return ViLBERTPretraining(ViLBERT(replace(CONFIG, contrastive_dim=16)), contrastive_weight=weight).eval()


def with_matches(mismatched: list[bool], images: list[int]) -> CaptionBatch:
    given = batch((1, 9), (2, 7), len(images))
    return replace(given, is_match=~torch.tensor(mismatched), image_rows=torch.tensor(images))


def test_texts_and_images_are_contrasted_before_they_meet():
    """Matched pairs alone, by the cosine of two projections of the means; captions of one image are no negatives."""
    trained = contrasted(0.5)
    given = with_matches([False, True, False, False, False], [0, 1, 2, 3, 3])
    given = replace(given, token_mask=torch.arange(7) < torch.tensor([7, 5, 3, 4, 6])[:, None])
    metrics, model, head = trained(given), trained.model, trained.model.contrastive_head
    rows, kept = [], [0, 2, 3, 4]
    for i in kept:
        length = int(given.token_mask[i].sum())
        words, shown = given.token_ids[i : i + 1, :length], given.token_mask[i : i + 1, :length]
        text = model.encode_text(words, given.token_types[i : i + 1, :length], shown).hidden_states[0].mean(0)
        here = given.region_features[i : i + 1], given.spatials[i : i + 1], given.region_mask[i : i + 1]
        rows.append((head.text(text), head.vision(model.encode_image(*here).hidden_states[0].mean(0))))
    scores = torch.tensor([[torch.cosine_similarity(t, v, 0).item() / 0.07 for _, v in rows] for t, _ in rows])
    negatives = ~torch.eye(4, dtype=torch.bool)
    negatives[2, 3] = negatives[3, 2] = False
    loss, accuracy = plain_contrast(scores, negatives, torch.ones(4, dtype=torch.bool))
    assert metrics["contrastive_loss"].item() == pytest.approx(loss, rel=1e-4)
    assert metrics["contrastive_accuracy"].item() == pytest.approx(accuracy)
    without = contrasted(0.0)
    without.model.load_state_dict(model.state_dict())
    assert metrics["loss"].item() == pytest.approx(without(given)["loss"].item() + 0.5 * loss, rel=1e-5)


@pytest.mark.parametrize("mismatched", [[True, True, True], [True, False, True]], ids=["none", "one"])
def test_a_batch_without_two_matched_pairs_teaches_the_projections_nothing(mismatched):
    trained = contrasted()
    metrics = trained(with_matches(mismatched, [0, 1, 2]))
    metrics["loss"].backward()
    assert metrics["contrastive_loss"].item() == 0
    for parameter in trained.model.contrastive_head.parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum().item() == pytest.approx(0, abs=1e-6)
    assert all(p.grad.isfinite().all() for p in trained.model.parameters() if p.grad is not None)


def test_without_a_weight_nothing_is_contrasted():
    trained = objective("classes")
    assert trained.model.contrastive_head is None
    assert "contrastive_loss" not in trained(batch())


def test_a_single_stream_has_nothing_to_contrast():
    with pytest.raises(ValueError, match="SingleStream"):
        ViLBERTPretraining(SingleStream(SINGLE), ("tokens",), contrastive_weight=1.0)


def test_the_head_changes_no_other_weight_and_is_saved(tmp_path: Path):
    regions, captions = write_captions(tmp_path)
    values = {"data": regions, "captions": captions, "variant": "small", "batch_size": 8, "workers": 0, "steps": 2}
    values |= {"validation_pairs": 16, "learning_rate": 1e-9}
    models = []
    for weight in (0.0, 1.0):
        out = tmp_path / f"run{weight}"
        values["contrastive_weight"] = weight
        assert train(vilbert_pretraining.recipe, values, out, device="cpu", precision="fp32", log_every=1) == 0
        models.append(load_model(out).state_dict())
        named = read_log(out / "metrics.jsonl")[-1].keys()
        assert ("contrastive_loss" in named) == bool(weight)
    new = {name for name in models[1] if name.startswith("contrastive_head.")}
    assert len(new) == 5 and models[0].keys() == models[1].keys() - new
    for name in models[0]:
        assert_close(models[0][name], models[1][name], rtol=0, atol=1e-6)


def test_retrieval_by_contrastive_encodings_ranks_by_the_cosine(tmp_path: Path):
    """Each query alone, without padding or batches, by torch's cosine similarity."""
    regions, captions = write_captions(tmp_path)
    values = {"data": regions, "captions": captions, "variant": "small", "batch_size": 8, "workers": 0, "steps": 6}
    values |= {"validation_pairs": 0, "contrastive_weight": 1.0, "dropout": 0.0}
    train(vilbert_pretraining.recipe, values, tmp_path / "run", device="cpu", precision="fp32")
    out = tmp_path / "results"
    compute = {"device": "cpu", "precision": "fp32"}
    evaluate_retrieval(tmp_path / "run", captions, regions, split="all", scores="contrastive", out=out, **compute)
    model = ViLBERT.from_pretrained(tmp_path / "run").eval()
    head = model.contrastive_head
    assert head is not None
    gallery = load_retrieval_data(tmp_path / "run", model.config, captions, regions, "all", 36, "none").gallery
    texts, images = [], []
    with torch.no_grad():
        for number in range(len(gallery.lengths)):
            words = gallery.get_token_ids(number)[None]
            texts.append(head.text(model.encode_text(words, torch.zeros_like(words), None).hidden_states[0].mean(0)))
        for number in range(len(gallery.counts)):
            seen = gallery.get_image(number)
            tokens = model.encode_image(seen.features[None], seen.spatials[None], None).hidden_states
            images.append(head.vision(tokens[0].mean(0)))
    with (out / "ranks.csv").open() as file:
        ranks = [int(row["trained"]) for row in csv.DictReader(file) if row["direction"] == "text_to_image"]
    for text, image, rank in zip(gallery.text_of.tolist(), gallery.image_of.tolist(), ranks, strict=True):
        cosines = torch.stack([torch.cosine_similarity(texts[text], other, 0) for other in images])
        better = int((cosines > cosines[image] + 1e-6).sum())
        ties = int((abs(cosines - cosines[image]) <= 1e-6).sum())
        assert better < rank <= better + ties
    with pytest.raises(CheckpointError, match="run0"):
        values["contrastive_weight"] = 0.0
        train(vilbert_pretraining.recipe, values, tmp_path / "run0", device="cpu", precision="fp32")
        evaluate_retrieval(tmp_path / "run0", captions, regions, scores="contrastive")
