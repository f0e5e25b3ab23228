"""Sampled captions: the distribution of Gibbs sampling in closed form, and the first step as `fill_mask` gives it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.cli.program import main
from comodal.inference.caption_sampling import SamplingOptions, sample_masked_tokens
from comodal.inference.vision_language import load_vision_language
from tests.support.small_runs import run_of, write_pictures

MASK = 3
JOINT = torch.tensor([[0.30, 0.05, 0.10], [0.02, 0.25, 0.03], [0.05, 0.05, 0.15]])  # p(first, second) of three tokens
EVERY = torch.tensor([True, True, True, False])


def compute_joint_logits(texts: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The exact conditionals of the joint distribution; the marginals where the other token is masked."""
    rows = []
    for text, position in zip(texts.tolist(), positions.tolist(), strict=True):
        assert text[position] == MASK
        table = JOINT if position == 0 else JOINT.T
        other = text[1 - position]
        conditional = table.sum(1) if other == MASK else table[:, other]
        rows.append(torch.cat([conditional.log(), torch.zeros(1)]))
    return torch.stack(rows)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("world"))


@pytest.mark.parametrize("sweeps", [0, 3])
def test_samples_have_the_joint_distribution(sweeps: int):
    """Unmasking gives p(first) p(second | first) exactly, and Gibbs sampling keeps it."""
    count = 6000
    options = SamplingOptions(num_tokens=2, num_samples=count, sweeps=sweeps)
    texts = sample_masked_tokens(compute_joint_logits, MASK, EVERY, options)
    observed = torch.zeros(9).index_add(0, texts[:, 0] * 3 + texts[:, 1], torch.ones(count)).view(3, 3)
    statistic = ((observed - count * JOINT).square() / (count * JOINT)).sum()
    assert statistic < 26.1  # the 0.999 quantile of chi-square with 8 degrees of freedom


def test_temperature_zero_takes_the_likeliest_and_top_k_only_the_first():
    """Whichever token comes first, the likeliest first token is 0 and the likeliest second token given it is 0."""
    greedy = SamplingOptions(num_tokens=2, num_samples=50, sweeps=2, temperature=0.0)
    likeliest = sample_masked_tokens(compute_joint_logits, MASK, EVERY, greedy)
    first_column, first_row = JOINT.sum(1).argmax(), JOINT.sum(0).argmax()
    assert (first_column, first_row, JOINT[0].argmax(), JOINT[:, 0].argmax()) == (0, 0, 0, 0)
    assert not likeliest.any()
    one = SamplingOptions(num_tokens=2, num_samples=50, sweeps=2, top_k=1)
    assert torch.equal(sample_masked_tokens(compute_joint_logits, MASK, EVERY, one), likeliest)
    without = sample_masked_tokens(compute_joint_logits, MASK, EVERY & (torch.arange(4) != 0), greedy)
    assert (without > 0).all() and (without < MASK).all()


def test_a_single_token_has_the_probabilities_of_fill_mask(world: Path, tmp_path: Path):
    pipeline = load_vision_language(run_of(world, tmp_path / "run"), precision="fp32")
    seen = pipeline.encode_image(world / "images" / "a.png")
    ordinary = {pipeline.tokenizer.vocabulary[i] for i in pipeline.tokenizer.ordinary_ids.tolist()}
    (filled,) = pipeline.fill_mask(seen, "[MASK]", top_k=pipeline.tokenizer.size)
    expected: dict[str, float] = {}
    for prediction in filled:
        if prediction.text in ordinary:  # a caption shows ##a as a
            word = prediction.text.removeprefix("##")
            expected[word] = expected.get(word, 0.0) + prediction.probability
    total, count = sum(expected.values()), 4000
    captions = pipeline.caption(seen, SamplingOptions(num_tokens=1, num_samples=count, sweeps=0))
    words = [caption.text.removeprefix("##") for caption in captions]
    observed = np.array([words.count(word) for word in expected], float)
    means = count * np.array(list(expected.values())) / total
    assert observed.sum() == count
    assert ((observed - means) ** 2 / means).sum() < len(means) + 5 * np.sqrt(2 * len(means))


def test_the_command_is_seeded_and_sorts_by_alignment(
    world: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
):
    run, image = str(run_of(world, tmp_path / "run")), str(world / "images" / "a.png")
    printed = []
    for seed in ("1", "1", "2"):
        words = ["caption", image, "--model", run, "--num-tokens", "4", "--num-samples", "3", "--sweeps", "1", "--json"]
        assert main([*words, "--seed", seed]) == 0
        printed.append(json.loads(capsys.readouterr().out))
    assert printed[0] == printed[1] != printed[2]
    probabilities = [entry["probability"] for entry in printed[0]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    assert not any("[" in entry["text"] for entry in printed[0])
    assert main(["caption", image, "--model", run, "--num-tokens", "100"]) == 1
    assert "num_tokens (100): this model has positions for 38 tokens" in capsys.readouterr().err
