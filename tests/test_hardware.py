"""What `auto` resolves to on machines that differ, and that no default raises on a CPU without bfloat16."""

import json
import os
import subprocess
import sys

import pytest
import torch

from comodal import environment, hardware
from comodal.cli.program import main

AVX2_ONLY = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}


def test_auto_takes_bf16_only_where_it_is_native(monkeypatch: pytest.MonkeyPatch):
    for native, precision in ((True, "bf16"), (False, "fp32")):
        monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda native=native: native)
        assert hardware.resolve_compute("cpu").precision == precision
        assert hardware.resolve_compute("cpu", "fp32").precision == "fp32"


def test_explicit_bf16_without_native_support_warns_and_is_kept(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "cpu_has_native_bf16", lambda: False)
    with pytest.warns(UserWarning, match="bf16 is not native"):
        assert hardware.resolve_compute("cpu", "bf16").precision == "bf16"


@pytest.mark.parametrize(("flag", "seconds", "native"), [(True, 2.0, True), (True, 20.0, False), (False, 2.0, False)])
def test_a_flag_that_stands_for_emulation_is_not_believed(
    flag: bool, seconds: float, native: bool, monkeypatch: pytest.MonkeyPatch
):
    """bf16 takes `seconds`, fp32 four."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: flag, raising=False)
    monkeypatch.setattr(hardware, "time_matrix_product", lambda dtype: seconds if dtype == torch.bfloat16 else 4.0)
    assert hardware.cpu_has_native_bf16.__wrapped__() is native


def test_without_the_flag_nothing_is_native(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware.torch.backends.mkldnn, "is_available", lambda: False)
    assert not hardware.cpu_has_native_bf16.__wrapped__()
    assert not hardware.can_fuse_convolution.__wrapped__(torch.float32)


def test_a_kernel_that_raises_cannot_be_fused(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("bf16 path needs the cpu support avx512")

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_convolution_weight", refuse, raising=False)
    assert not hardware.can_fuse_convolution.__wrapped__(torch.bfloat16)


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_auto_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "has_mps", lambda: False)
    assert hardware.find_device("auto") == torch.device("cpu")


def test_cuda_without_native_bf16_takes_fp32_with_tf32(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def supported(including_emulation: bool = True) -> bool:
        asked.append(including_emulation)
        return including_emulation  # as a T4 says

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    monkeypatch.setattr(hardware, "find_device", lambda _: torch.device("cuda"))
    try:
        assert hardware.resolve_compute().precision == "fp32"
        assert torch.get_float32_matmul_precision() == "high" and torch.backends.cudnn.benchmark
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]
    assert asked == [False]


def test_threads_are_given_set_or_idle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hardware, "count_cores", lambda: 8)
    monkeypatch.setattr(hardware, "count_busy_cores", lambda: 2.6)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert hardware.resolve_threads() == 5 and hardware.resolve_threads(3) == 3
    monkeypatch.setattr(hardware, "count_busy_cores", lambda: 9.0)
    assert hardware.resolve_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert hardware.resolve_threads() == torch.get_num_threads()


def test_env_tells_what_is_used_and_why(capsys: pytest.CaptureFixture[str]):
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["instruction_set"] == torch.backends.cpu.get_cpu_capability()
    assert found["cores"] <= (os.cpu_count() or 1)
    assert torch.__version__.startswith(found["packages"]["torch"])
    assert found["auto"]["precision"] in {"fp32", "bf16"} and set(found["why"]) == {
        "device",
        "precision",
        "threads",
        "engine",
    }
    assert main(["env"]) == 0
    out = capsys.readouterr().out
    assert "precision" in out and found["why"]["precision"] in out
    assert found["instruction_set"] in environment.summarize_environment() or torch.cuda.is_available()


def test_restricted_to_avx2_nothing_is_native_and_fp32_is_fused():
    """The variables do not change PyTorch's flag, so the probe has to find it out."""
    code = (
        "import torch\nfrom comodal import hardware\n"
        "print(hardware.resolve_compute().precision, hardware.can_fuse_convolution(torch.float32))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | AVX2_ONLY, capture_output=True, text=True, check=True
    )
    assert run.stdout.split() == ["fp32", "True"]


@pytest.mark.parametrize("given", [{}, {"GOMP_SPINCOUNT": "7"}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_openmp_spins_little_unless_the_user_says_otherwise(given: dict[str, str]):
    bare = {k: v for k, v in os.environ.items() if k not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    code = "import comodal, os, sys; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], env=bare | given, capture_output=True, text=True, check=True)
    expected = None if "OMP_WAIT_POLICY" in given else given.get("GOMP_SPINCOUNT", "1000")
    assert run.stdout.split() == [str(expected), "False"]


def test_loader_workers_are_two_for_a_cpu_and_shared_out_among_the_processes_of_gpus(monkeypatch: pytest.MonkeyPatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    for cores, processes, workers in ((64, 8, 7), (64, 1, 16), (16, 1, 15), (2, 1, 2)):
        monkeypatch.setattr(hardware, "count_cores", lambda cores=cores: cores)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
        assert hardware.resolve_loader_workers("auto", gpu) == workers
        assert hardware.resolve_loader_workers("auto", cpu) == 2
        assert hardware.resolve_loader_workers(5, gpu) == 5


def test_a_gpu_infers_in_batches_of_hundreds():
    assert hardware.Compute(torch.device("cuda", 0)).batch_size >= 100
    assert hardware.Compute(torch.device("cuda", 0)).sequence_batch >= 100


@pytest.mark.parametrize(
    ("instructions", "precision", "filters", "expected"),
    [
        ("AVX2", "fp32", 512, "contiguous"),
        ("AVX2", "fp32", 64, "channels_last"),
        ("AVX2", "bf16", 512, "channels_last"),
        ("AVX512", "fp32", 512, "channels_last"),
    ],
)
def test_wide_convolutions_are_contiguous_on_a_cpu_with_avx2_alone(
    monkeypatch: pytest.MonkeyPatch,
    instructions: str,
    precision: hardware.ResolvedPrecision,
    filters: int,
    expected: str,
):
    monkeypatch.setattr(hardware, "get_instruction_set", lambda: instructions)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, filters, 3))
    compute = hardware.Compute(torch.device("cpu"), precision)
    assert hardware.choose_training_layout(compute, network) == expected
    assert hardware.choose_training_layout(hardware.Compute(torch.device("cuda"), "fp32"), network) == "channels_last"
