"""Model FLOPs utilization (MFU): operations per second, as a fraction of the device's peak.

Operations are counted once, on fake tensors, which have shapes and no values: a forward and a backward pass of the
first batch. MFU is defined in PaLM (Chowdhery et al., 2022), section 4.1.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from comodal.data.batch import Batch, Tensors
from comodal.hardware import Compute

# TFLOP/s of dense matrix products, from NVIDIA's data sheets: bf16 (fp16 where there is no bf16), and fp32 (TF32 where
# there is any); figures with sparsity are halved. The first name that is part of the device's own counts.
PEAK_TFLOPS = {
    "B200": (2250, 1100),
    "GH200": (989, 494),
    "H200": (989, 494),
    "H100 PCIe": (756, 378),
    "H100": (989, 494),
    "A100": (312, 156),
    "L40S": (362, 183),
    "L4": (121, 60),
    "A10": (125, 62),
    "V100": (125, 15.7),
    "T4": (65, 8.1),
    "RTX 4090": (165, 82.6),
    "RTX 3090": (71, 35.6),
}
BENCHMARK_MATRIX_SIZE = (
    1024  # rows of the matrices of the timed product for devices not in the table: 20 ms on one core
)
BENCHMARK_REPEATS = 3
# Of the peak in training, to estimate by: on CPUs small networks reach 0.2 and full-width ones 0.4 to 0.8
# (docs/experiments/performance.md); not measured on GPUs.
TYPICAL_UTILIZATION = 0.35
TIME_UNITS = {"days": 86_400.0, "h": 3_600.0, "min": 60.0, "s": 1.0}
SI_PREFIXES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6}


@dataclass(frozen=True)
class Throughput:
    """The cost of a sample, and the peak of a process's device.

    Args:
        sample_flops: Operations of a forward and a backward pass of one sample.
        peak_flops: Peak operations per second of the device.
    """

    sample_flops: float
    peak_flops: float

    @classmethod
    def measure(cls, objective: nn.Module, batch: Batch, samples: int, compute: Compute) -> "Throughput | None":
        """Measures an objective on a batch; None if its operations cannot be counted."""
        flops = count_flops(objective, batch)
        return cls(flops / samples, estimate_peak_flops(compute)) if flops else None

    def compute_mfu(self, samples_per_second: float) -> float:
        """The fraction of the device's peak that a number of samples per second reaches."""
        return samples_per_second * self.sample_flops / self.peak_flops

    def estimate_seconds(self, samples: float) -> float:
        """Estimates the training time of a process for a number of samples, at a typical utilization."""
        return samples * self.sample_flops / (TYPICAL_UTILIZATION * self.peak_flops)


def count_flops(objective: nn.Module, batch: Batch) -> int:
    """Operations of a forward and a backward pass; 0 if a shape depends on values. Has no side effects."""
    if not isinstance(batch, Tensors):
        return 0
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    state = dict(objective.named_parameters()) | dict(objective.named_buffers())
    objective.train()
    counter = FlopCounterMode(display=False)
    try:
        fakes: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in state.items()}
        with mode, sdpa_kernel(SDPBackend.MATH), counter:
            fake = batch.map(mode.from_tensor)
            functional_call(objective, fakes, (fake,))["loss"].backward()
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException):
        return 0
    return counter.get_total_flops()


def estimate_peak_flops(compute: Compute) -> float:
    """Peak operations per second of a device in a precision: from the data sheet of a known GPU, else measured.

    Where bf16 is emulated, its products are slower than those of fp32, and the layers that stay in fp32 would exceed
    their rate. The measured peak is that of the faster type.
    """
    if compute.device.type == "cuda":
        name = torch.cuda.get_device_name(compute.device)
        peak = next((peaks for part, peaks in PEAK_TFLOPS.items() if part in name), None)
        if peak is not None:
            return 1e12 * peak[0 if compute.precision == "bf16" else 1]
    seconds = min(time_benchmark_product(dtype, compute.device) for dtype in {compute.dtype, torch.float32})
    return 2 * BENCHMARK_MATRIX_SIZE**3 / seconds


def time_benchmark_product(dtype: torch.dtype, device: torch.device) -> float:
    """The shortest time of a few products of two square matrices, in seconds."""
    matrix = torch.ones(BENCHMARK_MATRIX_SIZE, BENCHMARK_MATRIX_SIZE, dtype=dtype, device=device)
    seconds = []
    for _ in range(BENCHMARK_REPEATS + 1):  # the first product builds the kernel
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def format_rough_duration(seconds: float) -> str:
    """Formats a rough duration in the largest unit of which there are at least two: about 3 h, about 100 min."""
    unit = next((name for name, length in TIME_UNITS.items() if seconds >= 2 * length), "s")
    return f"about {max(1.0, float(f'{seconds / TIME_UNITS[unit]:.1g}')):,.0f} {unit}"


def format_rough_count(count: float) -> str:
    """Formats a count with two digits and a unit prefix, such as "1.2 T"."""
    rounded = float(f"{count:.2g}")
    prefix = next((name for name, size in SI_PREFIXES.items() if rounded >= size), "M")
    return f"{rounded / SI_PREFIXES[prefix]:,g} {prefix}"
