"""On a real GPU: that it computes what the CPU does, that training waits for it seldom, and that runs go on there."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from comodal.data.batch import AudioVisualBatch
from comodal.hardware import resolve_compute
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.objectives.avc import AudioVisualCorrespondence
from comodal.objectives.pretraining import ViLBERTPretraining
from comodal.recipes import avc_pretraining
from comodal.regions.backbones import Backbone, PooledRegions, compute_l3net_maps
from comodal.training.optimization import make_adam
from comodal.training.run import train
from comodal.training.run_log import read_log
from comodal.training.throughput import estimate_peak_flops
from comodal.training.training_loop import NotFiniteError, train_steps
from tests.objectives.test_pretraining import CONFIG
from tests.objectives.test_pretraining import batch as caption_batch
from tests.support.small_world import write_world

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def pairs(count: int, seed: int = 0) -> AudioVisualBatch:
    generator = torch.Generator().manual_seed(seed)
    return AudioVisualBatch(
        image=torch.randint(0, 256, (count, 3, 64, 64), generator=generator, dtype=torch.uint8),
        audio=0.1 * torch.randn(count, 48_000, generator=generator),
        is_match=torch.arange(count) % 2 == 0,
        source_ids=torch.arange(count),
        keys=tuple(f"{seed} {i}" for i in range(count)),
    )


def test_vilbert_gives_what_it_gives_on_the_cpu():
    torch.manual_seed(0)
    objective, batch = ViLBERTPretraining(ViLBERT(CONFIG)).eval(), caption_batch()
    torch.set_float32_matmul_precision("highest")
    wanted = objective(batch)
    gpu = torch.device("cuda")
    found = objective.to(gpu)(batch.to(gpu))
    for name, value in wanted.items():
        assert_close(found[name].cpu(), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_embeddings_are_those_of_the_cpu(dtype: torch.dtype):
    torch.manual_seed(0)
    model, batch = L3Net(make_small_l3net_config(8, 64)).eval(), pairs(5)
    wanted = make_fast_l3net(model).embed_image(batch.image), make_fast_l3net(model).embed_audio(batch.audio)
    quick = make_fast_l3net(model.to("cuda"), dtype)
    found = quick.embed_image(batch.image.cuda()).cpu(), quick.embed_audio(batch.audio.cuda()).cpu()
    for ours, theirs in zip(found, wanted, strict=True):
        assert F.cosine_similarity(ours, theirs).min() > (0.9999 if dtype == torch.float32 else 0.998)


def test_regions_are_those_of_the_cpu():
    torch.manual_seed(0)
    network, rng = L3Net(make_small_l3net_config(8, 64)).eval(), np.random.default_rng(0)
    boxes = np.array([[0, 0, 20, 30], [5, 5, 60, 60]], np.float32)
    pictures = [rng.integers(0, 256, (64, size, 3), np.uint8) for size in (64, 96, 64)]
    found = []
    for device in ("cpu", "cuda"):
        source = PooledRegions(
            Backbone("L3-Net", "", lambda x: compute_l3net_maps(network, x), 64, 8, device), 2, "all"
        )
        network.to(device)
        found.append(source.extract_batch([source.scale_image(picture, boxes) for picture in pictures]))
    for ours, theirs in zip(*found, strict=True):
        assert np.corrcoef(ours.features.ravel(), theirs.features.ravel())[0, 1] > 0.9999


def test_no_step_waits_for_the_gpu():
    """PyTorch raises where a CUDA call would wait; metrics are read after the last step alone."""
    compute = resolve_compute("cuda")
    objective = AudioVisualCorrespondence(L3Net(make_small_l3net_config(8, 64))).to(compute.device)
    batches = [pairs(4, seed).pin_memory() for seed in range(6)]
    steps = train_steps(
        objective, iter(batches), make_adam(objective, 1e-3, 1e-5), lambda _: 1e-3, range(6), compute,
        reads_metrics=lambda step: allow(step == 6),
    )  # fmt: skip
    torch.cuda.set_sync_debug_mode("error")
    try:
        (read,) = steps
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(read) == 6
    assert all(np.isfinite(values["loss"]) for values in read)


def allow(reads: bool) -> bool:
    """Lets the reading wait."""
    if reads:
        torch.cuda.set_sync_debug_mode("default")
    return reads


def test_a_loss_that_is_not_finite_is_found_late_and_names_its_samples():
    compute = resolve_compute("cuda", "fp32")
    objective = AudioVisualCorrespondence(L3Net(make_small_l3net_config(8, 64))).to(compute.device)
    batches = [pairs(4, seed) for seed in range(6)]
    batches[2].audio[1, 5] = float("nan")
    steps = train_steps(
        objective, iter(batches), make_adam(objective, 1e-3, 1e-5), lambda _: 1e-3, range(6), compute,
        reads_metrics=lambda step: step == 6,
    )  # fmt: skip
    with pytest.raises(NotFiniteError, match="at step 2 ") as caught:
        list(steps)
    assert caught.value.keys == batches[2].keys


def test_a_run_trains_compiled_resumes_and_tells_its_use_of_the_gpu(tmp_path: Path):
    for split in ("train", "validation"):
        write_world(tmp_path / "shards" / split, 12)
    settings = {"data": tmp_path / "shards", "variant": "small", "width": 8, "batch_size": 8, "workers": 2}
    for steps in (20, 40):
        assert (
            train(avc_pretraining.recipe, settings | {"steps": steps}, tmp_path / "run", resume=True, device="cuda")
            == 0
        )
    lines = [line for line in read_log(tmp_path / "run" / "metrics.jsonl") if line["split"] == "train"]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert all(0 < line["mfu"] < 1 for line in lines)


def test_the_peak_of_this_gpu_is_more_than_it_reaches():
    compute = resolve_compute("cuda")
    rows = 8192
    left = torch.randn(rows, rows, device=compute.device, dtype=compute.dtype)
    left @ left
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    left @ left
    end.record()
    torch.cuda.synchronize()
    assert (
        0.2 * estimate_peak_flops(compute)
        < 2 * rows**3 / (start.elapsed_time(end) / 1000)
        < 1.05 * estimate_peak_flops(compute)
    )
