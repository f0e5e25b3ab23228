"""The contrastive loss of a joint embedding space: closed forms, hand-worked numbers, and two processes against one."""

import math
import os
import socket
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.multiprocessing as processes
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from comodal import distributed
from comodal.data.batch import AudioVisualBatch
from comodal.models.ave_net.ave_net import SMALL_AVE_NET_CONFIG, AVENet
from comodal.objectives.frozen_parts import BOTH_TOWERS
from comodal.objectives.joint_embedding import ContrastiveEmbedding

TINY = replace(SMALL_AVE_NET_CONFIG, width=4, image_size=16, embedding_dim=8)


class FixedEmbeddings(nn.Module):
    """Returns the embeddings that it was given; the rest is AVE-Net's."""

    def __init__(self, image: Tensor, audio: Tensor) -> None:
        super().__init__()
        self.image, self.audio = nn.Parameter(image), nn.Parameter(audio)
        self.ave_net = AVENet(TINY)

    def compute_image_features(self, _: Tensor) -> Tensor:
        return self.image

    def compute_audio_features(self, _: Tensor) -> Tensor:
        return self.audio

    def score_all_pairs(self, image: Tensor, audio: Tensor) -> Tensor:
        return self.ave_net.score_all_pairs(image, audio)

    def fuse_all_pairs(self, image: Tensor, audio: Tensor) -> Tensor:
        return self.ave_net.fuse_all_pairs(image, audio)


def make_batch(count: int, sources: list[int] | None = None, seed: int = 0) -> AudioVisualBatch:
    rng = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=rng)
    audio = 0.1 * torch.randn(count, 48_000, generator=rng)
    source_ids = torch.tensor(sources) if sources else torch.arange(count)
    return AudioVisualBatch(image, audio, torch.ones(count, dtype=torch.bool), source_ids, ("key",) * count)


def compute_metrics(image: Tensor, audio: Tensor, sources: list[int] | None = None, temperature: float = 1.0) -> dict:
    objective = ContrastiveEmbedding(FixedEmbeddings(image, audio)).train()
    with torch.no_grad():
        objective.log_inverse_temperature.fill_(-math.log(temperature))
    return {name: value.item() for name, value in objective(make_batch(len(image), sources)).items()}


def test_equal_embeddings_cost_the_log_of_the_batch_size():
    same = F.normalize(torch.ones(5, 8), dim=1)
    assert compute_metrics(same, same)["contrastive_loss"] == pytest.approx(math.log(5), abs=1e-5)


def test_orthogonal_examples_cost_what_the_softmax_gives():
    """Cosines of 1 on the diagonal and 0 elsewhere, divided by a temperature of 0.5: log(1 + 3 exp(-2))."""
    metrics = compute_metrics(torch.eye(4, 8), torch.eye(4, 8), temperature=0.5)
    assert metrics["contrastive_loss"] == pytest.approx(math.log(1 + 3 * math.exp(-2)), abs=1e-5)
    assert metrics["contrastive_accuracy"] == 1.0 and metrics["temperature"] == pytest.approx(0.5)


def test_examples_of_one_source_are_no_negatives():
    """Four orthogonal examples of two sources: each has two negatives."""
    metrics = compute_metrics(torch.eye(4, 8), torch.eye(4, 8), sources=[7, 7, 9, 9])
    assert metrics["contrastive_loss"] == pytest.approx(math.log(1 + 2 * math.exp(-1)), abs=1e-5)


def test_the_decision_is_trained_by_the_cross_entropy_of_all_pairs():
    """Matched at distance 0 and mismatched at sqrt(2), the initial threshold: margins 2 sqrt(2) and 0."""
    expected = (math.log(1 + math.exp(-math.sqrt(8))) + math.log(2)) / 2
    assert compute_metrics(torch.eye(3, 8), torch.eye(3, 8))["pair_loss"] == pytest.approx(expected, abs=1e-5)


def test_the_decision_does_not_move_the_embeddings():
    torch.manual_seed(0)
    model = FixedEmbeddings(*(F.normalize(torch.randn(4, 8), dim=1) for _ in range(2)))
    metrics = ContrastiveEmbedding(model).train()(make_batch(4))
    pair, contrastive = (
        torch.autograd.grad(metrics[name], model.image, retain_graph=True, allow_unused=True)[0]
        for name in ("pair_loss", "contrastive_loss")
    )
    assert pair is None and contrastive.abs().max() > 1e-3
    metrics["pair_loss"].backward()
    assert model.ave_net.decision.weight.grad.abs().max() > 1e-3


def test_in_evaluation_the_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    model, batch = AVENet(TINY).eval(), make_batch(4)
    is_match = torch.tensor([True, False, True, False])
    batch = replace(batch, is_match=is_match)
    metrics = ContrastiveEmbedding(model).eval()(batch)
    distance = (model.compute_image_features(batch.image) - model.compute_audio_features(batch.audio)).norm(dim=1)
    probability = (2 * (math.sqrt(2) - distance)).sigmoid()
    expected = -torch.where(is_match, probability, 1 - probability).log().mean()
    assert metrics["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_frozen_towers_keep_their_weights_and_statistics():
    torch.manual_seed(0)
    objective = ContrastiveEmbedding(AVENet(TINY), BOTH_TOWERS).train()
    before = {name: value.clone() for name, value in objective.model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in objective.parameters() if p.requires_grad], lr=1.0)
    objective(make_batch(4))["loss"].backward()
    optimizer.step()
    changed = {name for name, value in objective.model.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in changed} == {"image_head", "audio_head", "decision"}


def make_objective() -> ContrastiveEmbedding:
    """With towers in evaluation mode: batch norms in training use the statistics of one process."""
    torch.manual_seed(0)
    return ContrastiveEmbedding(AVENet(TINY), BOTH_TOWERS).train()


def train_one_step(wrap: Callable[[nn.Module], nn.Module], batch: AudioVisualBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the trained weights after one step."""
    objective = make_objective()
    trained = {name: p for name, p in objective.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.1)
    wrapped = wrap(objective)  # DDP reduces gradients only while it is alive
    loss = wrapped(batch)["loss"]
    loss.backward()
    optimizer.step()
    return loss.detach(), {name: p.detach() for name, p in trained.items()}


def compare_with_one_process(rank: int, port: int) -> None:
    """Each of two processes has half of the batch; some sources have examples on both."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    whole = make_batch(8, [0, 1, 2, 3, 0, 4, 5, 1])
    expected_loss, expected = train_one_step(lambda objective: objective, whole)
    initial = dict(make_objective().named_parameters())
    distributed.init_distributed("cpu")
    own = slice(4 * rank, 4 * rank + 4)
    half = replace(whole.map(lambda tensor: tensor[own]), keys=whole.keys[own])
    loss, weights = train_one_step(DistributedDataParallel, half)
    distributed.shut_down_distributed()
    assert abs(loss - expected_loss) < 1e-6
    assert weights.keys() == expected.keys() and len(expected) == 11
    for name, weight in weights.items():
        assert (weight - expected[name]).abs().max() < 1e-6, name
        assert (initial[name] - expected[name]).abs().max() > 1e-3, name


@pytest.mark.slow
def test_two_processes_train_as_one_does():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes.start_processes(compare_with_one_process, (port,), nprocs=2, start_method="spawn")
