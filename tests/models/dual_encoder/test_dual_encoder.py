"""The dual encoder: transformers' BERT, pooling by hand, frozen weights, and what must not matter."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from comodal.errors import CheckpointError
from comodal.models.convert.convert_bert import load_bert_weights
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig, RegionAttention
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig
from tests.support.small_bert import POSITIONS, write_small_bert

VOCABULARY = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij")
CONFIG = DualEncoderConfig(StreamConfig(32, 2, 4, 64), len(VOCABULARY), POSITIONS, 0, 2, 6, 8)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return write_small_bert(tmp_path / "bert", VOCABULARY)


def make_texts() -> tuple[torch.Tensor, torch.Tensor]:
    token_ids = torch.randint(5, len(VOCABULARY), (3, 7), generator=torch.Generator().manual_seed(0))
    return token_ids, torch.arange(7) < torch.tensor([[7], [4], [2]])


def test_text_features_are_the_masked_mean_of_transformers_bert(bert: Path):
    transformers = pytest.importorskip("transformers")
    model = DualEncoder(CONFIG).eval()
    load_bert_weights(model, bert)
    token_ids, mask = make_texts()
    with torch.no_grad():
        theirs = transformers.BertModel.from_pretrained(bert, add_pooling_layer=False).eval()(
            token_ids, attention_mask=mask.long()
        )
        expected = torch.stack([row[keep].mean(0) for row, keep in zip(theirs.last_hidden_state, mask, strict=True)])
        assert_close(model.compute_text_features(token_ids, mask), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "attention"])
def test_padding_does_not_matter(pooling):
    model = DualEncoder(replace(CONFIG, image_pooling=pooling)).eval()
    token_ids, mask = make_texts()
    features, region_mask = torch.randn(3, 5, 6), torch.arange(5) < torch.tensor([[5], [2], [1]])
    found = model(token_ids, mask, features, region_mask)
    changed = model(
        token_ids.masked_fill(~mask, 9), mask, features.masked_fill(~region_mask.unsqueeze(2), 7.0), region_mask
    )
    assert torch.equal(found.text, changed.text) and torch.equal(found.image, changed.image)
    assert_close(found.image.norm(dim=1), torch.ones(3))
    alone = model.embed_image(features[1:2, :2], None)
    assert_close(alone[0], found.image[1])


def test_mean_pooling_takes_the_whole_image_and_standardizes_it():
    """Row 0 is the mean of the others; the head is layer normalization, one linear map and length one."""
    model = DualEncoder(CONFIG).eval()
    row = torch.tensor([3.0, 1.0, -1.0, -3.0, 2.0, -2.0])
    standardized = row / (28 / 6) ** 0.5  # the mean is 0, the sum of squares 28
    head = model.image_head.linear
    expected = F.normalize(head.weight @ standardized + head.bias, dim=0)
    found = model.embed_image(torch.stack([row, torch.randn(6)])[None], None)[0]
    assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_region_attention_is_a_softmax_by_hand():
    """Scores log 3 and 0: weights 3/4 and 1/4; the third region is padding."""
    pool = RegionAttention(2)
    with torch.no_grad():
        pool.score.weight.copy_(torch.tensor([[torch.tensor(3.0).log() / 2, 0.0]]))
        pool.score.bias.zero_()
    features = torch.tensor([[[2.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])  # standardized: (1, -1), (-1, 1)
    found = pool(features, torch.tensor([[True, True, False]]))
    assert_close(found, torch.tensor([[1.5, 1.0]]), rtol=1e-4, atol=1e-4)


def test_a_frozen_bert_has_no_dropout_and_no_gradients_in_training():
    token_ids, mask = make_texts()
    frozen, trained = DualEncoder(CONFIG).train(), DualEncoder(replace(CONFIG, is_text_frozen=False)).train()
    assert torch.equal(frozen.compute_text_features(token_ids, mask), frozen.compute_text_features(token_ids, mask))
    first, second = (trained.compute_text_features(token_ids, mask) for _ in range(2))
    assert not torch.equal(first, second)
    names = {name.split(".")[0] for name, parameter in frozen.named_parameters() if parameter.requires_grad}
    assert names == {"text_head", "image_head", "temperature"}


def test_a_model_is_saved_and_loaded(tmp_path: Path):
    model = DualEncoder(replace(CONFIG, image_pooling="attention")).eval()
    model.save_pretrained(tmp_path / "model")
    again = DualEncoder.from_pretrained(tmp_path / "model")
    token_ids, mask = make_texts()
    features = torch.randn(3, 4, 6)
    for ours, theirs in zip(
        again(token_ids, mask, features, None), model(token_ids, mask, features, None), strict=True
    ):
        assert torch.equal(ours, theirs)
    with pytest.raises(CheckpointError, match="DualEncoder, not a ViLBERT"):
        ViLBERT.from_pretrained(tmp_path / "model")


def test_wrong_sizes_are_named():
    with pytest.raises(ValueError, match=r"initial_temperature"):
        replace(CONFIG, initial_temperature=0.0)
    with pytest.raises(ValueError, match=r"head_dropout"):
        replace(CONFIG, head_dropout=1.5)


def test_the_temperature_is_at_least_that_of_clip():
    model = DualEncoder(CONFIG)
    with torch.no_grad():
        model.temperature.log_temperature.fill_(-100.0)
    assert model.temperature().exp().item() == pytest.approx(0.01)
