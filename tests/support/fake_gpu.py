"""A GPU that computes nothing: CUDA tensors are PyTorch's fake tensors, CPU tensors are real.

An operation that mixes devices raises, and so does one for which a GPU would make the host wait: reading a value, or a
shape that depends on values. `.cpu()` may wait; it gives zeros.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision  # noqa: F401, fake tensors need what it tells of its kernels
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from comodal.hardware import Compute

GPU = torch.device("cuda:0")
module_to = nn.Module.to
aten = torch.ops.aten


@dataclass(frozen=True)
class FakeCompute(Compute):
    """On the fake GPU; PyTorch's own autocast looks for a real one."""

    device: torch.device = GPU

    @contextmanager
    def autocast(self) -> Iterator[None]:
        before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", self.precision == "bf16")
        torch.set_autocast_dtype("cuda", torch.bfloat16)
        try:
            yield
        finally:
            torch.set_autocast_enabled("cuda", before[0])
            torch.set_autocast_dtype("cuda", before[1])
            torch.clear_autocast_cache()


class _Dispatch(TorchDispatchMode):
    """Real where everything is on the CPU, fake where something is on the GPU.

    Args:
        waits: Whether values may be read, as detectors do that keep what is likely: every condition then holds, and
            every number read is 1.
    """

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(isinstance(tensor, FakeTensor) and tensor.device.type == "cuda" for tensor in tensors)
        if func is aten._to_copy.default and on_gpu and device is not None and torch.device(device).type == "cpu":
            with unset_fake_temporarily():
                return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if on_gpu and self.waits:
            found = waited(func, args)
            if found is not None:
                return found
        if on_gpu or (device is not None and torch.device(device).type == "cuda"):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)


def waited(func: Any, args: tuple) -> Any:
    """What an operation gives whose result depends on values."""
    if func is aten._local_scalar_dense.default:
        return {torch.bool: True, torch.int64: 1}.get(args[0].dtype, 1.0)
    if func is torch.ops.torchvision.nms.default:
        return torch.zeros(len(args[0]), dtype=torch.int64, device=GPU)
    if func is aten.nonzero.default:
        return torch.zeros((args[0].numel(), args[0].ndim), dtype=torch.int64, device=GPU)
    if func is aten.index.Tensor and any(index is not None and index.dtype == torch.bool for index in args[1]):
        indices: list[Tensor | None] = []
        for index in args[1]:
            if index is None or index.dtype != torch.bool:
                indices.append(index)
            else:
                assert index.device == GPU
                indices += [torch.zeros(index.numel(), dtype=torch.int64, device=GPU)] * index.ndim
        return func(args[0], indices)
    return None


@contextmanager
def fake_gpu(waits: bool = False) -> Iterator[None]:
    """Everything inside may use the device `GPU`."""
    flags = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "backward", backward)
        patch.setattr(nn.Module, "to", move_once)
        patch.setattr(torch._C, "_InferenceMode", no_gradients)  # inference mode goes past the fake tensors
        with FakeTensorMode(allow_non_fake_inputs=True), _Dispatch(waits):
            yield
    torch.set_float32_matmul_precision(flags[0])
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = flags[1:]


def move_once(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """`Module.to`, which does nothing where it has nothing to move: PyTorch cannot replace a fake parameter again."""
    tensors = [*module.parameters(), *module.buffers()]
    if args == (GPU,) and not kwargs and all(tensor.device == GPU for tensor in tensors):
        return module
    return module_to(module, *args, **kwargs)


def no_gradients(mode: bool) -> torch.autograd.grad_mode.set_grad_enabled:
    """In the place of inference mode, which records no gradients either."""
    return torch.autograd.grad_mode.set_grad_enabled(not mode)


def backward(loss: Tensor) -> None:
    """The chain rule, node by node: autograd's own engine asks the driver for streams where a tensor is on a GPU."""
    order: list[Any] = []
    seen: set[Any] = set()
    stack: list[tuple[Any, bool]] = [(loss.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node is not None and node not in seen:
            seen.add(node)
            stack += [(node, True), *((after, False) for after, _ in node.next_functions)]
    gradients: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    with torch.no_grad():
        for node in reversed(order):
            given = gradients.pop(node, None)
            if given is None:
                continue
            if hasattr(node, "variable"):
                leaf = node.variable
                assert given[0].device == leaf.device
                leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
                continue
            found = node(*(given.get(i) for i in range(len(node._input_metadata))))
            for (after, place), gradient in zip(
                node.next_functions, found if isinstance(found, tuple) else (found,), strict=True
            ):
                if after is not None and gradient is not None:
                    wanted = after._input_metadata[place]  # what was broadcast or cast is summed or cast back
                    gradient = gradient.sum_to_size(wanted.shape).to(wanted.dtype)
                    into = gradients.setdefault(after, {})
                    into[place] = into[place] + gradient if place in into else gradient
