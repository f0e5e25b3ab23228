"""Training steps, embedders, detectors and tasks on a fake GPU: nothing stays on the CPU, and no step waits for it."""

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision  # noqa: F401, fake tensors need what it tells of its kernels
from torch import Tensor, nn

from comodal.data.batch import AudioVisualBatch, Batch, ClassificationBatch, LabeledClipBatch, TaskBatch
from comodal.inference.embedder import Embedder, EmbedderOptions
from comodal.models.l3net.clip_classifier import ClipClassifier, ClipClassifierConfig
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.l3net_classifier import build_l3_classifier
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.task_model import TaskModelConfig as TaskConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.objectives.avc import AllPairs, AudioVisualCorrespondence
from comodal.objectives.frozen_parts import BOTH_TOWERS
from comodal.objectives.pretraining import ViLBERTPretraining, count_target_columns
from comodal.recipes.avc_pretraining import AVC_VARIANTS
from comodal.recipes.clip_classification import ClipClassificationObjective
from comodal.regions.backbones import Backbone, PooledRegions, compute_l3net_maps
from comodal.regions.extractors_c4 import C4Extractor
from comodal.regions.extractors_fpn import FPNExtractor
from comodal.tasks.correspondence.clip_features import embed_batch
from comodal.tasks.evaluation.l3net_fine_tuning import ClassificationObjective
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    FineTuningObjective,
    compute_choice_loss,
    compute_class_loss,
    compute_region_loss,
    compute_soft_answer_loss,
    score_batch,
)
from comodal.training.optimization import make_adam, make_adamw
from comodal.training.training_loop import train_steps, validate_objective
from tests.objectives.test_pretraining import CLASSES, CONFIG, FEATURES, SINGLE, TOKENS
from tests.objectives.test_pretraining import batch as caption_batch
from tests.support.detector_fixtures import CAFFE, LXMERT, PYRAMID, c4_of, caffe_rules, fpn_of, fpn_rules, lxmert_rules
from tests.support.fake_gpu import GPU, FakeCompute, fake_gpu


def train_on_the_fake_gpu(objective: Callable[[], nn.Module], batch: Batch, precision: str) -> None:
    """Two steps of two parts, one look at the metrics, and a validation."""
    compute = FakeCompute(precision=precision)
    with fake_gpu():
        module = objective().to(GPU)
        optimizer = make_adamw(module, 1e-3, 0.01)
        reports = list(
            train_steps(module, iter([batch] * 4), optimizer, lambda _: 1e-3, range(2), compute, 2, lambda s: s == 2)
        )
        assert [len(report) for report in reports] == [2]
        assert all(parameter.device == GPU for parameter in module.parameters())
        assert any(optimizer.state.values())
        validate_objective(module, [batch], compute)


@pytest.mark.parametrize(
    ("variant", "precision"), [("paper", "fp32"), ("small", "bf16"), ("l3embedding", "bf16"), ("openl3_mel256", "bf16")]
)
def test_l3net_trains(variant: str, precision: str):
    config = replace(AVC_VARIANTS[variant], width=8, image_size=64)
    image, together = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.zeros(4, dtype=torch.bool)
    batch = AudioVisualBatch(image, torch.zeros(4, config.sample_rate), together, torch.arange(4), tuple("abcd"))
    objective = AllPairs if variant == "small" else AudioVisualCorrespondence
    train_on_the_fake_gpu(lambda: objective(L3Net(config)), batch, precision)


def test_supervised_baselines_train_and_score_pairs():
    config = replace(AVC_VARIANTS["small"], width=4)
    image, audio = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.zeros(4, config.sample_rate)
    labeled = LabeledClipBatch(image, audio, torch.arange(4) % 2, tuple("abcd"))
    classifier = ClipClassifierConfig(config, 2)
    train_on_the_fake_gpu(lambda: ClipClassificationObjective(ClipClassifier(classifier)), labeled, "bf16")
    pairs = AudioVisualBatch(image, audio, torch.zeros(4, dtype=torch.bool), torch.arange(4), tuple("abcd"))
    train_on_the_fake_gpu(lambda: AudioVisualCorrespondence(L3Net(config), BOTH_TOWERS), pairs, "fp32")
    with fake_gpu():
        for model in (ClipClassifier(classifier).to(GPU), L3Net(config).to(GPU)):
            features = embed_batch(model, pairs.to(GPU), FakeCompute(precision="bf16"), 2)
            assert features.image.device == features.audio.device == GPU
            assert model.fuse_all_pairs(*features).shape == (4, 4, 2)
            assert model.fuse_pairs(*features).device == GPU


@pytest.mark.parametrize(
    ("targets", "precision"),
    [
        (("classes",), "bf16"),
        (("classes", "features", "contrast", "tokens"), "fp32"),
        pytest.param(("features",), "bf16", marks=pytest.mark.slow),
        pytest.param(("contrast",), "bf16", marks=pytest.mark.slow),
        pytest.param(("tokens",), "bf16", marks=pytest.mark.slow),
    ],
)
def test_vilbert_trains_with_every_target(targets: tuple[str, ...], precision: str):
    columns = sum(count_target_columns(targets, FEATURES, CLASSES, TOKENS).values())
    config = replace(CONFIG, region_targets=columns)
    train_on_the_fake_gpu(lambda: ViLBERTPretraining(ViLBERT(config), targets), caption_batch(), precision)


def test_vilbert_trains_with_a_contrast_of_encodings():
    train_on_the_fake_gpu(
        lambda: ViLBERTPretraining(ViLBERT(replace(CONFIG, contrastive_dim=16)), contrastive_weight=1.0),
        caption_batch(),
        "bf16",
    )


@pytest.mark.parametrize("changed", [{"dynamic_attention": True}, {"co_attention": False}, {"frozen_text_layers": 1}])
def test_vilberts_of_other_designs_train(changed: dict[str, object]):
    train_on_the_fake_gpu(lambda: ViLBERTPretraining(ViLBERT(replace(CONFIG, **changed))), caption_batch(), "fp32")


def test_a_batch_in_which_nothing_is_hidden_trains():
    batch = caption_batch(words_hidden=(), regions_hidden=())
    train_on_the_fake_gpu(lambda: ViLBERTPretraining(ViLBERT(CONFIG)), batch, "fp32")


def test_a_single_stream_trains():
    train_on_the_fake_gpu(lambda: ViLBERTPretraining(SingleStream(SINGLE), ("tokens",)), caption_batch(), "bf16")


def task_batch(targets: Tensor, texts: int) -> TaskBatch:
    words, attended = torch.ones(texts, 7, dtype=torch.int64), torch.arange(7) < torch.tensor([[7], [4]] * (texts // 2))
    regions = torch.zeros(2, 4, FEATURES)
    there = torch.arange(4) < torch.tensor([[4], [2]])
    images = torch.arange(texts) % 2
    keys = tuple(map(str, range(len(targets))))
    spatials, no_tokens = torch.zeros(2, 4, 5), words[:0, 0]
    return TaskBatch(words, words * 0, attended, regions, spatials, there, images, targets, no_tokens, keys)


TASKS = {
    "answers": (Head("h", "answers", 9, 16), compute_soft_answer_loss, task_batch(torch.rand(4, 9), 4)),
    "one of some classes": (Head("h", "linear", 3), compute_class_loss, task_batch(torch.tensor([0, 2, 1, 1]), 4)),
    "pairs of images": (Head("h", "pairs", 2, 16), compute_class_loss, task_batch(torch.tensor([0, 1]), 4)),
    "one of four texts": (Head("h", "linear", 1), compute_choice_loss, task_batch(torch.tensor([3, 0]), 8)),
    "regions": (Head("h", "regions", 1), compute_region_loss, task_batch(torch.rand(4, 4), 4)),
}


@pytest.mark.parametrize("task", TASKS)
def test_fine_tuning_for_every_kind_of_task(task: str):
    head, judge, batch = TASKS[task]
    train_on_the_fake_gpu(
        lambda: FineTuningObjective(TaskModel(TaskConfig(CONFIG, (head,))), "h", judge), batch, "bf16"
    )


@pytest.mark.parametrize("modality", ["image", "audio"])
def test_fine_tuning_for_classes(modality: str):
    config = make_small_l3net_config(8, 64)
    shown = torch.zeros(4, 3, 64, 64, dtype=torch.uint8) if modality == "image" else torch.zeros(4, 48_000)
    classifier = build_l3_classifier(L3Net(config), modality, 5, 0.5)
    train_on_the_fake_gpu(
        lambda: ClassificationObjective(classifier),
        ClassificationBatch(shown, torch.tensor([0, 4, 2, 1]), tuple("abcd")),
        "bf16",
    )


def test_l3net_trains_with_adam():
    """With the decay in the gradient and one fused kernel."""
    with fake_gpu():
        objective = AudioVisualCorrespondence(L3Net(make_small_l3net_config(8, 64))).to(GPU)
        batch = AudioVisualBatch(
            torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
            torch.zeros(2, 48_000),
            torch.ones(2, dtype=torch.bool),
            torch.arange(2),
            ("a", "b"),
        )
        steps = train_steps(
            objective, iter([batch]), make_adam(objective, 1e-3, 1e-5), lambda _: 1e-3, range(1), FakeCompute()
        )
        assert len(list(steps)) == 1


# Inference


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_embedder(precision: str):
    with fake_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("comodal.hardware.has_native_bf16", lambda _: True)
        embedder = Embedder(
            L3Net(make_small_l3net_config(8, 64)).eval(), EmbedderOptions(precision=precision, device="cuda:0"), {}
        )
        vectors, silent = embedder.embed_audio(np.ones((3, 48_000), np.float32))
        assert vectors.shape == (3, 4 * 3 * 64)
        assert not silent.any()
        assert embedder.embed_images(np.zeros((3, 64, 64, 3), np.uint8)).shape == (3, 4 * 4 * 64)
        quick = make_fast_l3net(L3Net(make_small_l3net_config(8, 64)).eval().to(GPU), torch.bfloat16)
        assert quick.embed_image(torch.zeros(3, 3, 64, 64, dtype=torch.uint8, device=GPU)).device == GPU
        assert quick.embed_audio(torch.zeros(3, 48_000, device=GPU)).device == GPU


def test_regions_are_pooled_on_the_device_together():
    with fake_gpu():
        network = L3Net(make_small_l3net_config(8, 64)).eval().to(GPU)
        shapes = []

        def maps(pictures: Tensor) -> list[Tensor]:
            shapes.append(tuple(pictures.shape))
            return compute_l3net_maps(network, pictures)

        source = PooledRegions(Backbone("L3-Net", "", maps, 64, 8, "cuda:0"), cells=2, maps="all")
        shapes.clear()
        boxes = np.array([[0, 0, 20, 30], [5, 5, 60, 60]], np.float32)
        pictures = [np.zeros((64, size, 3), np.uint8) for size in (64, 96, 64)]
        given = (boxes, boxes[:1], boxes)
        found = source.extract_batch([source.scale_image(*both) for both in zip(pictures, given, strict=True)])
        assert [of_one.features.shape for of_one in found] == [(n, source.feature_dim) for n in (2, 1, 2)]
        assert shapes == [(2, 3, 64, 64), (1, 3, 64, 96)]


@pytest.mark.parametrize("folder", [*CAFFE, *LXMERT], ids=lambda folder: folder.name)
@pytest.mark.parametrize("given", [False, True])
def test_bottom_up_attentions_detector(folder: Path, given: bool):
    picture, boxes = np.zeros((90, 120, 3), np.uint8), np.array([[4, 5, 60, 70], [0, 0, 119, 89]], np.float32)
    rules = caffe_rules(folder) if folder in CAFFE else lxmert_rules(folder)
    model = copy.deepcopy(c4_of(folder))
    with fake_gpu(waits=True):
        found = C4Extractor(model, rules, device="cuda:0")(picture, boxes if given else None)
    assert found.features.shape == (len(found.boxes), model.config.feature_dim)
    assert len(found.boxes) == 2 or not given


@pytest.mark.parametrize("folder", PYRAMID, ids=lambda folder: folder.name)
@pytest.mark.parametrize("given", [False, True])
def test_12_in_1s_detector(folder: Path, given: bool):
    picture, boxes = np.zeros((90, 120, 3), np.uint8), np.array([[4, 5, 60, 70], [0, 0, 119, 89]], np.float32)
    model = copy.deepcopy(fpn_of(folder))
    with fake_gpu(waits=True):
        found = FPNExtractor(model, fpn_rules(folder), "cuda:0")(picture, boxes if given else None)
    assert len(found.features) == len(found.boxes)
    assert len(found.boxes) == 2 or not given


@pytest.mark.parametrize("task", TASKS)
def test_asking_every_kind_of_task(task: str):
    head, _, batch = TASKS[task]
    with fake_gpu(), torch.inference_mode(), FakeCompute(precision="bf16").autocast():
        model = TaskModel(TaskConfig(CONFIG, (head,))).eval().to(GPU)
        assert score_batch(model, "h", batch.to(GPU)).device == GPU
