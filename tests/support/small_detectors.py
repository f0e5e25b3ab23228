"""Small detectors of other libraries with random weights, as their files."""

from pathlib import Path

import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn


def write_faster_rcnn(path: Path) -> Path:
    """A file of torchvision's smallest, with weights large enough that boxes differ in what they hold."""
    torch.manual_seed(1)
    model = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=7)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(30)
    torch.save(model.state_dict(), path)
    return path


def tiny_backbone() -> dict[str, object]:
    from transformers import ResNetConfig

    sizes = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
    config = ResNetConfig(**sizes, out_features=["stage4"])
    return {"use_timm_backbone": False, "backbone_config": config, "use_pretrained_backbone": False, "backbone": None}


def write_detr(folder: Path) -> Path:
    """A folder of Hugging Face's DETR of one layer."""
    from transformers import DetrConfig, DetrForObjectDetection, DetrImageProcessor

    heads = {
        "encoder_attention_heads": 2,
        "decoder_attention_heads": 2,
        "num_queries": 9,
        "num_labels": 5,
        "d_model": 16,
    }
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    torch.manual_seed(0)
    model = DetrForObjectDetection(DetrConfig(**tiny_backbone(), **heads, **layers))
    with torch.no_grad():
        model.class_labels_classifier.weight.mul_(20)
    model.save_pretrained(folder)
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 100}).save_pretrained(folder)
    return folder
