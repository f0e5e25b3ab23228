"""The contrastive loss of two embeddings of a batch: closed forms, CLIP's own loss, and two processes that are one."""

import math
import os
import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from comodal import distributed
from comodal.data.batch import ImageTextBatch
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig
from comodal.models.vilbert.vilbert_config import StreamConfig
from comodal.objectives.image_text_contrastive import ImageTextContrastive
from comodal.objectives.in_batch_contrastive import compute_in_batch_contrastive_loss

ROWS = 8
DISTINCT = torch.arange(ROWS)
CONFIG = DualEncoderConfig(
    StreamConfig(16, 2, 2, 32, dropout=0.0, attention_dropout=0.0), 40, 20, 0, 2, 12, 8, "attention", 0.0,
    is_text_frozen=False,
)  # fmt: skip


def unit_rows(seed: int, dim: int = 5) -> Tensor:
    return F.normalize(torch.randn(ROWS, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_equal_embeddings_cost_the_log_of_the_batch_size(temperature: float):
    same = torch.ones(ROWS, 1)
    found = compute_in_batch_contrastive_loss(same, same, DISTINCT, torch.tensor(temperature).log())
    assert found.loss.item() == pytest.approx(math.log(ROWS))


def test_orthogonal_pairs_have_a_closed_form():
    """Each pair has a cosine of 1, all others 0: log(1 + (B - 1) exp(-1 / t))."""
    basis, temperature = torch.eye(ROWS), 0.5
    found = compute_in_batch_contrastive_loss(basis, basis, DISTINCT, torch.tensor(temperature).log())
    assert found.loss.item() == pytest.approx(math.log(1 + (ROWS - 1) * math.exp(-1 / temperature)), rel=1e-6)
    assert found.accuracy == 1


def test_captions_of_one_image_are_not_negatives_of_each_other():
    """Two rows of one image: each is compared with the six of other images and with itself."""
    groups = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])
    same = torch.ones(ROWS, 1)
    found = compute_in_batch_contrastive_loss(same, same, groups, torch.tensor(0.0))
    assert found.loss.item() == pytest.approx((2 * math.log(7) + 6 * math.log(8)) / 8)


def test_it_is_the_loss_of_transformers_clip():
    clip = pytest.importorskip("transformers.models.clip.modeling_clip")
    text, image, log_temperature = unit_rows(0), unit_rows(1), torch.tensor(0.07).log()
    logits = text @ image.T * (-log_temperature).exp()
    theirs = getattr(clip, "clip_loss", None) or clip.image_text_contrastive_loss
    found = compute_in_batch_contrastive_loss(text, image, DISTINCT, log_temperature)
    assert_close(found.loss, theirs(logits), rtol=1e-6, atol=1e-6)


def make_batch(rows: slice) -> ImageTextBatch:
    rng = torch.Generator().manual_seed(0)
    token_ids = torch.randint(5, 40, (ROWS, 6), generator=rng)
    token_mask = torch.arange(6) < torch.randint(3, 7, (ROWS, 1), generator=rng)
    region_mask = torch.arange(4) < torch.randint(1, 5, (ROWS, 1), generator=rng)
    features = torch.randn(ROWS, 4, 12, generator=rng)
    image_rows = torch.tensor([0, 1, 2, 0, 3, 4, 0, 2])  # rows of one image are in both halves
    keys = tuple(map(str, range(ROWS)))
    tensors = (token_ids, token_mask, torch.empty(ROWS, 0), features, region_mask, image_rows)
    return ImageTextBatch(*(tensor[rows] for tensor in tensors), keys[rows])


def make_objective() -> ImageTextContrastive:
    torch.manual_seed(0)
    return ImageTextContrastive(DualEncoder(CONFIG)).train()


def compute_half(rank: int, port: int, out: Path) -> None:
    """The loss and the gradients of one of two processes, each with half of the batch."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    distributed.init_distributed("cpu")
    objective = make_objective()
    half = slice(rank * ROWS // 2, (rank + 1) * ROWS // 2)
    wrapped = DistributedDataParallel(objective)
    loss = wrapped(make_batch(half))["loss"]
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in objective.named_parameters()}
    torch.save((loss.detach(), gradients), out / f"{rank}.pt")
    distributed.shut_down_distributed()


def test_two_processes_with_gathered_negatives_are_one_process(tmp_path: Path):
    """The mean of the losses and the averaged gradients of all weights, the temperature included."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.start_processes(compute_half, (port, tmp_path), nprocs=2, start_method="spawn")
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    objective = make_objective()
    loss = objective(make_batch(slice(None)))["loss"]
    loss.backward()
    assert abs(halves[0][0] - halves[1][0]) > 1e-3, "each process counts its own rows"
    assert_close((halves[0][0] + halves[1][0]) / 2, loss.detach(), rtol=0, atol=1e-6)
    for name, parameter in objective.named_parameters():
        for _, gradients in halves:
            assert parameter.grad is not None
            error = (gradients[name] - parameter.grad).abs().max().item()
            assert error <= 1e-6 * max(1.0, parameter.grad.abs().max().item()), name
