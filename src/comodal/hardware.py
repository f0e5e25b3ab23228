"""Hardware detection: the device, precision, kernels and number of threads that `auto` resolves to.

A CPU computes in bfloat16 only if that is faster than fp32, which a timed matrix product verifies: PyTorch's own flag
is also true for slow emulation, and ignores `ONEDNN_MAX_CPU_ISA`. Kernels that are private to PyTorch are tried once on
a small tensor.
"""

import os
import time
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

import torch

DeviceName: TypeAlias = Literal["auto", "cpu", "cuda", "mps"]
Precision: TypeAlias = Literal["auto", "fp32", "bf16"]
EmbedPrecision: TypeAlias = Literal["auto", "fp32", "bf16", "int8"]  # int8: exported engines only
ResolvedPrecision: TypeAlias = Literal["fp32", "bf16"]
MemoryLayout: TypeAlias = Literal["contiguous", "channels_last"]

MEMORY_FORMATS: dict[MemoryLayout, torch.memory_format] = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
PROBE_SIZE = 256  # rows of the matrices of the timed probe: 0.4 ms in fp32, some 30 ms where bfloat16 is emulated
PROBE_REPEATS = 3
CPU_MICRO_BATCH = 2  # the fastest of 1, 2, 4 and 8 on CPUs: larger batches exceed the cache
GPU_BATCH = 256
CPU_SEQUENCE_BATCH, GPU_SEQUENCE_BATCH = 64, 1024  # larger batches need more memory and are not faster
CPU_LOADER_WORKERS = 2
MAX_GPU_WORKERS = 16  # at some 400 pairs a second each
LOAD_PROBE_SECONDS = 0.05  # duration of the measurement of other processes' load
PROBE_CONVOLUTION = [1, 1]
MAX_NARROW_FILTERS = 256  # filters up to which channels_last is at least as fast on a CPU with AVX2 only


@dataclass(frozen=True)
class Compute:
    """Device and precision."""

    device: torch.device
    precision: ResolvedPrecision = "fp32"

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.precision]

    @property
    def batch_size(self) -> int:
        """See `choose_inference_batch_size`."""
        return choose_inference_batch_size(self.device)

    @property
    def sequence_batch(self) -> int:
        """See `choose_sequence_batch_size`."""
        return choose_sequence_batch_size(self.device)

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


@dataclass(frozen=True)
class ComputeOptions:
    """The device and the precision that a command asks for.

    Args:
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.
    """

    device: DeviceName = "auto"
    precision: Precision = "auto"

    def resolve(self) -> Compute:
        """The device and precision of this machine; raises ValueError if it has no such device."""
        return resolve_compute(self.device, self.precision)


AUTOMATIC = ComputeOptions()


def resolve_compute(device: str = "auto", precision: Precision = "auto") -> Compute:
    """Resolves the device and the precision.

    Args:
        device: auto takes CUDA, else MPS, else the CPU.
        precision: auto takes bf16 where the device computes it natively, else fp32 (on CUDA with TF32).

    Raises:
        ValueError: This machine has no such device, or there is no such precision.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"there is no precision {precision!r}; pass {', '.join(get_args(Precision))}")
    chosen = find_device(device)
    if chosen.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32, where there is any
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
    if precision == "bf16" and not has_native_bf16(chosen.type):
        warnings.warn(
            f"bf16 is not native on this {chosen.type} device and may be many times slower than fp32; "
            "--precision auto selects the faster one",
            stacklevel=1,  # one location for all callers: Python prints it once
        )
    if precision == "auto":
        precision = "bf16" if has_native_bf16(chosen.type) else "fp32"
    return Compute(chosen, precision)


def choose_sequence_batch_size(device: torch.device) -> int:
    """Inference batch size of a transformer, in texts, images or pairs."""
    return CPU_SEQUENCE_BATCH if device.type == "cpu" else GPU_SEQUENCE_BATCH


def choose_inference_batch_size(device: torch.device) -> int:
    """Inference batch size of a convolutional network, in images or windows."""
    return CPU_MICRO_BATCH if device.type == "cpu" else GPU_BATCH


def choose_training_layout(compute: Compute, module: torch.nn.Module) -> MemoryLayout:
    """Chooses the memory format of convolution weights for training.

    It is channels_last, except for wide convolutions in fp32 on a CPU without AVX-512. There, contiguous weights are
    1.3 times as fast with 512 filters, equally fast with 256, and slower with 128 or fewer
    (docs/experiments/performance.md).
    """
    widest = max((layer.out_channels for layer in module.modules() if isinstance(layer, torch.nn.Conv2d)), default=0)
    is_narrow_cpu = compute.device.type == "cpu" and compute.precision == "fp32" and get_instruction_set() != "AVX512"
    return "contiguous" if is_narrow_cpu and widest > MAX_NARROW_FILTERS else "channels_last"


def resolve_loader_workers(workers: int | Literal["auto"], device: torch.device) -> int:
    """Data loader workers per compute process; auto: two for a CPU, for a GPU its part of the cores, at most 16."""
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return CPU_LOADER_WORKERS
    local_processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(MAX_GPU_WORKERS, max(CPU_LOADER_WORKERS, count_cores() // local_processes - 1))


def find_device(name: str) -> torch.device:
    """Returns the device of a name, such as auto, cpu, cuda or cuda:1.

    Raises:
        ValueError: This machine has no such device.
    """
    if str(name).split(":")[0] not in get_args(DeviceName):
        raise ValueError(
            f"device {name}: there is none of this name; pass {', '.join(get_args(DeviceName))}, or cuda:1"
        )
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "mps" if has_mps() else "cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # PyTorch's exceptions differ by device type
        raise ValueError(f"device {name}: {str(error).splitlines()[0]}") from None


def get_module_device(module: torch.nn.Module) -> torch.device:
    """The device of a module's weights."""
    return next(module.parameters()).device


def has_mps() -> bool:
    return torch.backends.mps.is_available()


def has_native_bf16(device_type: str = "cpu") -> bool:
    """Whether the hardware computes bfloat16 natively."""
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and cpu_has_native_bf16()


@cache
def cpu_has_native_bf16() -> bool:
    """Whether a matrix product in bfloat16 is faster than in fp32 on this CPU (AVX-512 BF16, AMX).

    PyTorch's flag is not sufficient: it is also true for emulation, and where the environment restricts oneDNN.
    """
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    if not torch.backends.mkldnn.is_available() or supported is None or not supported():
        return False
    return time_matrix_product(torch.bfloat16) < 0.9 * time_matrix_product(torch.float32)


def time_matrix_product(dtype: torch.dtype) -> float:
    """The shortest time of a few small matrix products."""
    matrix = torch.ones(PROBE_SIZE, PROBE_SIZE, dtype=dtype)
    seconds = []
    for _ in range(PROBE_REPEATS + 1):  # the first product builds the kernel
        start = time.perf_counter()
        matrix @ matrix
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


@cache
def can_fuse_convolution(dtype: torch.dtype) -> bool:
    """Whether PyTorch's private oneDNN convolution (`torch.ops.mkldnn`) runs on this CPU with this dtype.

    It is private, so it may be missing, and it raises in bfloat16 on a CPU without AVX-512. The check convolves one
    pixel.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    step = PROBE_CONVOLUTION
    try:
        weight = torch.ones(8, 8, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last)
        packed = torch.ops.mkldnn._reorder_convolution_weight(weight, step, step, step, 1, [1, 8, 4, 4])
        image = torch.ones(1, 8, 4, 4, dtype=dtype).contiguous(memory_format=torch.channels_last)
        bias = torch.zeros(8, dtype=dtype)
        torch.ops.mkldnn._convolution_pointwise(image, packed, bias, step, step, step, 1, "relu", [], "")
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    return True


def get_instruction_set() -> str:
    """The CPU's instruction set that PyTorch's kernels use: AVX512, AVX2, or DEFAULT."""
    return torch.backends.cpu.get_cpu_capability()


def count_cores() -> int:
    """Number of cores that this process may use: its affinity, and the quota of its control group."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    try:
        limit, period = quota.read_text().split()
    except (OSError, ValueError):
        return cores
    return min(cores, max(1, round(int(limit) / int(period)))) if limit != "max" else cores


def read_memory_bytes(device: torch.device) -> int:
    """The memory of a GPU, or of this machine within the limit of its control group."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return memory
    return min(memory, int(limit)) if limit.isdecimal() else memory


def resolve_threads(threads: int | None = None) -> int:
    """Number of compute threads: as given, as `OMP_NUM_THREADS`, or the number of idle cores.

    Threads that wait for each other at barriers lose most of their speed next to another busy process, so busy cores
    are not counted.
    """
    if not is_thread_count_free(threads):
        return torch.get_num_threads() if threads is None else threads
    return max(1, count_cores() - round(count_busy_cores()))


def is_thread_count_free(threads: int | None) -> bool:
    """Whether neither the caller nor the environment sets the number of compute threads."""
    return threads is None and "OMP_NUM_THREADS" not in os.environ


def count_busy_cores() -> float:
    """Number of cores that are busy at this moment; 0 if the system does not report it."""
    before = read_cpu_times()
    if before is None:
        return 0.0
    time.sleep(LOAD_PROBE_SECONDS)
    after = read_cpu_times()
    assert after is not None
    total, idle = after[0] - before[0], after[1] - before[1]
    return 0.0 if total <= 0 else (1 - idle / total) * (os.cpu_count() or 1)


def read_cpu_times() -> tuple[int, int] | None:
    """Ticks of all cores since boot, and the idle ones among them (Linux)."""
    try:
        fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return None
    return sum(fields), fields[3] + fields[4]
