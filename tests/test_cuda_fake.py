"""Training steps on a fake GPU: nothing stays on the CPU, and no step waits for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from comodal.data.batch import (
    AudioVisualBatch,
    Batch,
    CaptionImageBatch,
    ClassificationBatch,
    ImageTextBatch,
    LabeledClipBatch,
)
from comodal.data.captions.caption_files import Caption
from comodal.data.captions.caption_image_dataset import NO_AUGMENTATION, CaptionImageDataset
from comodal.data.loader import Loader
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.ave_net.ave_net import SMALL_AVE_NET_CONFIG, AVENet
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.l3net.clip_classifier import ClipClassifier, ClipClassifierConfig
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.l3net_classifier import build_l3_classifier
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.task_model import TaskModelConfig as TaskConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.objectives.avc import AllPairs, AudioVisualCorrespondence
from comodal.objectives.frozen_parts import BOTH_TOWERS
from comodal.objectives.image_text_contrastive import ImageTextContrastive
from comodal.objectives.joint_embedding import ContrastiveEmbedding
from comodal.objectives.pretraining import ViLBERTPretraining, count_target_columns
from comodal.recipes.avc_pretraining import AVC_VARIANTS
from comodal.recipes.clip_classification import ClipClassificationObjective
from comodal.recipes.dual_encoder_training import compute_frozen_features
from comodal.recipes.joint_training import JointObjective, JointTask
from comodal.tasks.correspondence.clip_features import embed_batch
from comodal.tasks.evaluation.l3net_fine_tuning import ClassificationObjective
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    FineTuningObjective,
)
from comodal.training.optimization import make_adam, make_adamw
from comodal.training.task_schedule import JointBatch, JointSamples, TaskSchedule
from comodal.training.training_loop import train_steps, validate_objective
from tests.objectives.test_pretraining import CLASSES, CONFIG, FEATURES, SINGLE, TOKENS
from tests.objectives.test_pretraining import batch as caption_batch
from tests.support.fake_gpu import GPU, FakeCompute, fake_gpu
from tests.support.small_systems import AVE_NETS, DUAL, TASKS


def train_on_the_fake_gpu(
    objective: Callable[[], nn.Module], batch: Batch, precision: str, second: Batch | None = None
) -> None:
    """Two steps of two parts (the second step with its own batch), one look at the metrics, and a validation."""
    batches = [batch] if second is None else [batch, second]
    compute = FakeCompute(precision=precision)
    with fake_gpu():
        module = objective().to(GPU)
        optimizer = make_adamw(module, 1e-3, 0.01)
        reports = list(
            train_steps(
                module,
                iter([batches[0]] * 2 + [batches[-1]] * 2),
                optimizer,
                lambda _: 1e-3,
                range(2),
                compute,
                2,
                lambda s: s == 2,
            )
        )
        assert [len(report) for report in reports] == [2]
        assert all(parameter.device == GPU for parameter in module.parameters())
        assert any(optimizer.state.values())
        validate_objective(module, batches, compute)


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


def test_joint_training_with_task_tokens():
    config = replace(CONFIG, task_tokens=20)
    joint, batches, loader = [], [], Loader(JointSamples([]), 1, 0)
    for place, name in enumerate(("answers", "one of four texts")):
        head, judge, batch = TASKS[name]
        joint.append(JointTask(name, replace(head, name=f"h{place}"), {}, judge, loader, None, "", {}))
        tokens = torch.full((len(batch.token_ids),), 3 + place)
        batches.append(JointBatch(place, replace(batch, task_ids=tokens)))
    schedule = TaskSchedule(tuple(task.name for task in joint))
    train_on_the_fake_gpu(
        lambda: JointObjective(TaskModel(TaskConfig(config, tuple(task.head for task in joint))), joint, schedule),
        batches[0],
        "bf16",
        batches[1],
    )


@pytest.mark.parametrize("objective", [ContrastiveEmbedding, AudioVisualCorrespondence])
@pytest.mark.parametrize("changed", AVE_NETS.values(), ids=AVE_NETS)
def test_ave_net_trains(objective: type[nn.Module], changed: dict[str, object]):
    config = replace(SMALL_AVE_NET_CONFIG, width=4, **changed)
    image, together = torch.zeros(4, 3, 64, 64, dtype=torch.uint8), torch.tensor([True, False, True, True])
    batch = AudioVisualBatch(image, torch.zeros(4, config.sample_rate), together, torch.arange(4), tuple("abcd"))
    frozen = () if config.image_backbone == "vgg" else ("image_tower", "audio_tower")
    train_on_the_fake_gpu(lambda: objective(AVENet(config), frozen), batch, "bf16")


@pytest.mark.parametrize("pooling", ["mean", "attention"])
@pytest.mark.parametrize("is_text_frozen", [True, False])
def test_the_dual_encoder_trains(pooling: str, is_text_frozen: bool):
    config = replace(DUAL, image_pooling=pooling, is_text_frozen=is_text_frozen)
    there = torch.arange(4) < torch.tensor([[4], [2], [1]])
    batch = ImageTextBatch(
        token_ids=torch.ones(3, 7, dtype=torch.int64),
        token_mask=torch.arange(7) < torch.tensor([[7], [4], [2]]),
        text_features=torch.zeros(3, config.text.dim if is_text_frozen else 0),
        region_features=torch.zeros(3, 4, config.region_feature_dim),
        region_mask=there,
        image_rows=torch.tensor([0, 0, 1]),
        keys=tuple("abc"),
    )
    train_on_the_fake_gpu(lambda: ImageTextContrastive(DualEncoder(config)), batch, "bf16")


@pytest.mark.parametrize("is_image_frozen", [True, False])
def test_the_dual_encoder_trains_on_pixels(is_image_frozen: bool):
    config = replace(
        DUAL, image_backbone="efficientnet_lite0", region_feature_dim=1280, is_image_frozen=is_image_frozen
    )
    batch = CaptionImageBatch(
        token_ids=torch.ones(3, 7, dtype=torch.int64),
        token_mask=torch.arange(7) < torch.tensor([[7], [4], [2]]),
        text_features=torch.zeros(3, config.text.dim),
        pixels=torch.zeros(3, 3, 32, 32, dtype=torch.uint8),
        image_features=torch.zeros(3, 0),
        image_rows=torch.tensor([0, 0, 1]),
        keys=tuple("abc"),
    )
    train_on_the_fake_gpu(lambda: ImageTextContrastive(DualEncoder(config)), batch, "bf16")


def test_features_of_frozen_encoders_are_computed_on_the_gpu(tmp_path: Path):
    """Captions and images come from the CPU, and the features go back to it."""
    tokenizer = WordPieceTokenizer.from_texts(["a dog"])
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    captions = [(Caption(("a",), "a dog", None, "0"), 0)]
    samples = CaptionImageDataset(captions, tmp_path, ["a.png"], tokenizer, 0, 1, 8, 32, NO_AUGMENTATION)
    config = replace(DUAL, vocabulary=tokenizer.size, image_backbone="efficientnet_lite0", region_feature_dim=1280)
    with fake_gpu():
        model = DualEncoder(config).to(GPU)
        compute_frozen_features(model, [samples], GPU)
    assert samples.text_features.shape == (1, config.text.dim) and samples.image_features.shape == (1, 1280)
    assert samples.text_features.device.type == samples.image_features.device.type == "cpu"
    assert samples.batch([(0, 0)]).pixels.numel() == 0
