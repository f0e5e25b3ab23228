"""Small configurations and batches of several systems, which are only run and not compared."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from comodal.data.batch import TaskBatch
from comodal.models.ave_net.ave_net import AVENet, AVENetConfig
from comodal.models.ave_net.musicnn_vgg import MUSICNN_SPECTROGRAM_CONFIG
from comodal.models.dual_encoder.dual_encoder import DualEncoder, DualEncoderConfig
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.l3net.spectrogram import SMALL_SPECTROGRAM_CONFIG
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import StreamConfig
from comodal.tasks.vision_language.grounding.candidate_choice import compute_candidate_loss
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    compute_choice_loss,
    compute_class_loss,
    compute_region_loss,
    compute_soft_answer_loss,
)
from tests.objectives.test_pretraining import FEATURES
from tests.support.small_tasks import config as small_vilbert_config

AVE_NETS: dict[str, dict[str, Any]] = {
    "AVE-Net": {},
    "AVOL-Net": {"comparison": "localization"},
    "AVE-Net of trained towers": {
        "image_backbone": "efficientnet_lite0",
        "audio_backbone": "musicnn_vgg",
        "spectrogram": MUSICNN_SPECTROGRAM_CONFIG,
    },
    "AVE-Net of statistics": {"audio_backbone": "spectrogram_statistics"},
}
DUAL = DualEncoderConfig(StreamConfig(16, 1, 2, 24), 40, 20, 0, 2, FEATURES, 8)
PRETRAINED_MODELS: dict[str, Callable[[], nn.Module]] = {
    "L3Net": lambda: L3Net(make_small_l3net_config(1, 24)),
    "AVENet": lambda: AVENet(AVENetConfig(image_size=24, spectrogram=SMALL_SPECTROGRAM_CONFIG, width=1)),
    "ViLBERT": lambda: ViLBERT(small_vilbert_config(40)),
    "DualEncoder": lambda: DualEncoder(DUAL),
}


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
    "some of the regions": (
        Head("h", "regions", 1),
        compute_candidate_loss,
        task_batch(torch.tensor([[-1.0, 1, 0, 0]] * 4), 4),
    ),
}
