"""Floating point operations counted, against formulas and a published number."""

from dataclasses import replace

import pytest
import torch

from comodal.data.batch import AudioVisualBatch
from comodal.hardware import Compute
from comodal.models.l3net.l3net import PAPER_L3NET_CONFIG, L3Net, make_small_l3net_config
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.objectives.avc import AudioVisualCorrespondence
from comodal.objectives.pretraining import ViLBERTPretraining
from comodal.training import throughput
from comodal.training.throughput import (
    Throughput,
    count_flops,
    estimate_peak_flops,
    format_rough_count,
    format_rough_duration,
)
from tests.objectives.test_pretraining import CONFIG, FEATURES, batch


def pairs(count: int, side: int) -> AudioVisualBatch:
    return AudioVisualBatch(
        image=torch.zeros(count, 3, side, side, dtype=torch.uint8),
        audio=torch.zeros(count, 48_000),
        is_match=torch.ones(count, dtype=torch.bool),
        source_ids=torch.arange(count),
        keys=tuple(map(str, range(count))),
    )


def convolutions(width: int, channels: int, rows: int, columns: int) -> int:
    """Multiply-adds of a tower, layer by layer, twice: forward, and backward for weights and inputs (which the first
    layer does not need)."""
    total = 0
    for layer in range(8):
        filters = width * 2 ** (layer // 2)
        total += 2 * 9 * channels * filters * rows * columns * (3 if layer else 2)
        channels = filters
        if layer % 2:
            rows, columns = rows // 2, columns // 2
    return total


def test_the_operations_of_l3net_are_those_of_its_convolutions():
    """The fully connected layers are a ten-thousandth of them."""
    objective = AudioVisualCorrespondence(L3Net(PAPER_L3NET_CONFIG))
    wanted = convolutions(64, 3, 224, 224) + convolutions(64, 1, 257, 199)
    assert count_flops(objective, pairs(2, 224)) == pytest.approx(2 * wanted, rel=1e-3)


def test_counting_changes_neither_the_model_nor_the_random_state():
    objective = ViLBERTPretraining(ViLBERT(CONFIG))
    before, state = {k: v.clone() for k, v in objective.state_dict().items()}, torch.get_rng_state()
    flops = count_flops(objective, batch())
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(tensor, before[name]) for name, tensor in objective.state_dict().items())
    assert all(parameter.grad is None for parameter in objective.parameters())
    assert flops > 3 * 2 * batch().token_ids.numel() * (4 * 16 * 16 + 2 * 16 * 24)  # one layer of the text stream alone


@pytest.mark.parametrize("targets", [("features",), ("contrast",)])
def test_every_target_can_be_counted(targets: tuple[str, ...]):
    assert count_flops(ViLBERTPretraining(ViLBERT(replace(CONFIG, region_targets=FEATURES)), targets), batch()) > 0


def test_mfu_is_the_fraction_of_the_peak():
    """3,000 pairs a second of 122.6 GFLOP on an H200, whose data sheet says 989 TFLOP/s in bf16: 37 %."""
    assert Throughput(122.6e9, 989e12).compute_mfu(3000.0) == pytest.approx(0.372, abs=1e-3)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [("NVIDIA H200", 989, 494), ("NVIDIA A100-SXM4-80GB", 312, 156), ("Tesla T4", 65, 8.1), ("NVIDIA L40S", 362, 183)],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet(name: str, bf16: float, fp32: float, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    gpu = torch.device("cuda", 0)
    assert estimate_peak_flops(Compute(gpu, "bf16")) == bf16 * 1e12
    assert estimate_peak_flops(Compute(gpu, "fp32")) == fp32 * 1e12


def test_the_peak_of_a_cpu_is_measured(monkeypatch: pytest.MonkeyPatch):
    clock = iter(map(float, range(100)))
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: next(clock))  # each product takes one second
    assert estimate_peak_flops(Compute(torch.device("cpu"))) == 2 * 1024**3


def test_the_peak_in_emulated_bf16_is_that_of_fp32(monkeypatch: pytest.MonkeyPatch):
    """Otherwise the utilization of the layers that stay in fp32 would be above 1."""
    seconds = {torch.bfloat16: 8.0, torch.float32: 2.0}
    monkeypatch.setattr(throughput, "time_benchmark_product", lambda dtype, _: seconds[dtype])
    for precision in ("bf16", "fp32"):
        assert estimate_peak_flops(Compute(torch.device("cpu"), precision)) == 1024**3


def test_mel_filters_count_too():
    """64 bands of 1,025 bins for each of 32 frames, which no gradient goes back through."""
    wanted = convolutions(8, 3, 64, 64) + convolutions(8, 1, 64, 32) + 2 * 64 * 1025 * 32
    assert count_flops(AudioVisualCorrespondence(L3Net(make_small_l3net_config(8, 64))), pairs(2, 64)) == pytest.approx(
        2 * wanted, rel=1e-3
    )


def test_the_expected_time_is_that_of_the_operations_at_a_typical_utilisation():
    """A third of 989 TFLOP/s gives 2,800 pairs of 122.6 GFLOP a second."""
    assert 2_500 < 1 / Throughput(122.6e9, 989e12).estimate_seconds(1.0) < 3_200


def test_estimates_are_written_with_few_digits():
    times = {0.2: "1 s", 63.0: "60 s", 421.0: "7 min", 6_900.0: "100 min", 7_900.0: "2 h", 86_400.0 * 163: "200 days"}
    assert {seconds: format_rough_duration(seconds) for seconds in times} == {k: f"about {v}" for k, v in times.items()}
    counts = {1.23e12: "1.2 T", 8.01e9: "8 G", 9.97e8: "1 G", 4.6e5: "0.46 M", 3.14e16: "31 P"}
    assert {number: format_rough_count(number) for number in counts} == counts
