"""The plain pretraining losses that benchmarks compare with are those of the objective, padded or not."""

import pytest
import torch
from torch.testing import assert_close

from comodal.objectives import pretraining
from comodal.objectives.pretraining import ViLBERTPretraining
from tests.support.plain_vilbert import plain_losses
from tests.support.vilbert_fixtures import FIXTURES, batch_of, model_of, tensors


@pytest.mark.parametrize("wide", [0, pretraining.MIN_DIM_TO_DROP_PADDING], ids=["without padding", "with padding"])
def test_the_objective_gives_the_plain_losses_and_gradients(wide: int, monkeypatch: pytest.MonkeyPatch):
    """Heads at masked positions, no padding (of wide models) and fused attention leave both unchanged."""
    monkeypatch.setattr(pretraining, "MIN_DIM_TO_DROP_PADDING", wide)
    folder = FIXTURES / "pretrain_vt0"
    model, inputs = model_of(folder), tensors(folder, "inputs")
    batch = batch_of(inputs, "classes")
    assert (
        len(batch.unpadded_token_indices) < batch.token_ids.numel()
        and len(batch.unpadded_region_indices) < batch.visual_tokens.numel()
    )
    found = []
    for losses in (ViLBERTPretraining(model)(batch), plain_losses(model, batch, words=14, rows=11)):
        gradients = torch.autograd.grad(losses["loss"], list(model.parameters()), allow_unused=True)
        found.append((losses, gradients))
    (fast, fast_gradients), (plain, plain_gradients) = found
    for name, loss in plain.items():
        assert_close(fast[name], loss, atol=1e-5, rtol=1e-5)
    for one, other in zip(fast_gradients, plain_gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_the_plain_losses_are_the_originals():
    folder = FIXTURES / "pretrain_vt0"
    outputs, inputs = tensors(folder, "outputs"), tensors(folder, "inputs")
    losses = plain_losses(model_of(folder), batch_of(inputs, "classes"), words=14, rows=11)
    named = {"token_loss": "masked_lm_loss", "region_loss": "masked_img_loss", "alignment_loss": "next_sentence_loss"}
    for ours, theirs in named.items():
        assert_close(losses[ours], outputs[theirs].squeeze(), atol=1e-5, rtol=1e-5)
