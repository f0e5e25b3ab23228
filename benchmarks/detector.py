"""The Visual Genome detectors on a picture, against their straightforward versions.

Both versions have the same random weights at full size, which changes no time, and their boxes are compared, too.
c4: ResNet-101-C4, 600 x 1000 pixels, 300 proposals; plain_detector.py (float32, batch normalisation as layers of
its own, all regions at once, 1,600 suppressions) with ours in float32 and with its last stage in bfloat16.
fpn: ResNeXt-152-FPN, 800 x 1333 pixels, 1,000 proposals, in float32; batch normalisation as layers of its own with
ours, where it is part of the convolutions, in the layout that is fastest.

    python benchmarks/detector.py [--network c4] [--short-side 600] [--proposals 300] [--repeats 3]
        [--threads 2] [--out results.json]
"""

import argparse
import copy
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from comodal.models.convert.convert_c4 import CAFFE_ANCHOR_SCALES
from comodal.models.detectors import detector_fpn
from comodal.models.detectors.detector_boxes import make_cell_anchors, resize_like_opencv, to_centered_bgr
from comodal.models.detectors.detector_c4 import C4, C4_STRIDE, C4Config, optimize_c4_layout
from comodal.models.detectors.detector_fpn_regions import FPNDetections, FPNPostprocessing, detect_fpn_regions
from comodal.models.detectors.detector_rules import (
    C4Detections,
    C4Postprocessing,
    detect_caffe_regions,
    select_caffe_regions,
)
from machine import describe_machine, report, save, seconds_in_turn

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.plain_detector import PlainC4, PlainFound, plain_choice, same_c4

HEIGHT, WIDTH = 480, 800
TERA_OPERATIONS = 2 * (83 + 11 + 879) / 1000  # backbone, proposals, 300 regions through res5
PLAIN, EXACT, ROUGH = "plain fp32", "ours fp32", "ours, last stage bf16"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=("c4", "fpn"), default="c4")
    parser.add_argument("--short-side", type=int, help="of the resized picture; by default 600, for fpn 800")
    parser.add_argument("--proposals", type=int, help="by default 300, for fpn 1,000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.inference_mode():
        machine = describe_machine()
        sizes = {"size": options.short_side, "post_nms_top_k": options.proposals}
        changed = {name: value for name, value in sizes.items() if value is not None}
        network = whole if options.network == "c4" else pyramid
        numbers = {"threads": float(options.threads), **network(options.repeats, changed), **selection(10), **machine}
    save(numbers, options.out)


def picture() -> Tensor:
    """Noise of all sizes, so that proposals differ."""
    rng = np.random.default_rng(0)
    layers = []
    for cells in (3, 12, 48, 160):
        noise = rng.integers(0, 256, (cells * 3, cells * 5, 3), dtype=np.uint8)
        layers.append(np.asarray(Image.fromarray(noise).resize((WIDTH, HEIGHT)), np.float32))
    return torch.from_numpy(np.mean(layers, 0).astype(np.uint8))


def networks() -> tuple[PlainC4, C4, C4]:
    """One network three times."""
    torch.manual_seed(0)
    plain = PlainC4(C4Config()).eval()
    plain.rest.cell_anchors.copy_(make_cell_anchors(C4_STRIDE, CAFFE_ANCHOR_SCALES))
    return (
        plain,
        optimize_c4_layout(same_c4(plain, C4Config())),
        optimize_c4_layout(same_c4(plain, C4Config()), torch.bfloat16),
    )


def whole(repeats: int, changed: dict[str, int]) -> dict[str, float]:
    """From bytes to regions."""
    plain, exact, rough = networks()
    pixels, rules = picture(), dataclasses.replace(C4Postprocessing(), **changed)
    scale = rules.size / HEIGHT
    found: dict[str, PlainFound | C4Detections] = {}
    spent: dict[str, list[float]] = {PLAIN: [], EXACT: [], ROUGH: []}

    def keeping(name: str, work: Callable[[], PlainFound | C4Detections]) -> Callable[[], None]:
        def kept() -> None:
            start = time.process_time()
            found[name] = work()
            spent[name].append(time.process_time() - start)

        return kept

    works = {
        PLAIN: keeping(PLAIN, lambda: plain(resize_like_opencv(to_centered_bgr(pixels), scale)[None], scale, rules)),
        EXACT: keeping(EXACT, lambda: detect_caffe_regions(exact, pixels, rules)),
        ROUGH: keeping(ROUGH, lambda: detect_caffe_regions(rough, pixels, rules)),
    }
    is_full = rules == C4Postprocessing()
    work = dict.fromkeys(works, TERA_OPERATIONS if is_full else 0.0)
    numbers = report("picture", seconds_in_turn(works, repeats), work, PLAIN)
    spent = {name: seconds[1:] for name, seconds in spent.items()}
    numbers |= report("picture, processor time", spent, work, PLAIN)  # what a busy machine does not change
    return numbers | compared(found)


def pyramid(repeats: int, changed: dict[str, int]) -> dict[str, float]:
    """The same of the network with a feature pyramid."""
    torch.manual_seed(0)
    plain = detector_fpn.FPN(detector_fpn.FPNConfig()).eval()
    with torch.no_grad():
        for block in plain.modules():
            if isinstance(block, detector_fpn.FPNBottleneck):
                block.conv3.get_buffer("1.weight").fill_(0.2)  # 50 blocks on top of each other would overflow
        sizes = [make_cell_anchors(stride, (8.0,)) for stride in detector_fpn.FPN_STRIDES]
        plain.cell_anchors.copy_(torch.stack(sizes))
    ours, pixels, rules = (
        detector_fpn.optimize_fpn_layout(copy.deepcopy(plain)),
        picture(),
        dataclasses.replace(FPNPostprocessing(), **changed),
    )
    found: dict[str, FPNDetections] = {}
    works: dict[str, Callable[[], object]] = {
        PLAIN: lambda: found.update({PLAIN: detect_fpn_regions(plain, pixels, rules)}),
        EXACT: lambda: found.update({EXACT: detect_fpn_regions(ours, pixels, rules)}),
    }
    return report("picture", seconds_in_turn(works, repeats), dict.fromkeys(works, 0.0), PLAIN) | compared(found)


def compared(found: dict[str, Any]) -> dict[str, float]:
    """How far regions are from the plain version's."""
    plain, numbers = found.pop(PLAIN), dict[str, float]()
    for name, ours in found.items():
        same = sorted(set(ours.proposal_indices.tolist()) & set(plain.proposal_indices.tolist()))
        mine, theirs = ([one.proposal_indices.tolist().index(i) for i in same] for one in (ours, plain))
        pixels = float((ours.boxes[mine] - plain.boxes[theirs]).abs().max())
        cosine = float(F.cosine_similarity(ours.features[mine], plain.features[theirs]).min())
        said = (
            f"{name}: {len(same)} of {len(plain.proposal_indices)} regions the same, boxes within {pixels:.1e} pixels"
        )
        Console().print(f"{said}, cosine of features at least {cosine:.6f}", highlight=False)
        numbers |= {f"picture.{name}.same": len(same) / len(plain.proposal_indices), f"picture.{name}.pixels": pixels}
        numbers[f"picture.{name}.cosine"] = cosine
    return numbers


def selection(repeats: int) -> dict[str, float]:
    """Of 300 boxes and 1,601 classes the 36 surest."""
    torch.manual_seed(1)
    corners = torch.rand(300, 2) * 500
    boxes = torch.cat([corners, corners + 20 + torch.rand(300, 2) * 300], 1)
    classes, rules = (3 * torch.randn(300, 1601)).softmax(1), C4Postprocessing()
    assert torch.equal(select_caffe_regions(boxes, classes, rules), plain_choice(boxes, classes, rules))
    works = {
        "class by class": lambda: plain_choice(boxes, classes, rules),
        "lazy": lambda: select_caffe_regions(boxes, classes, rules),
    }
    return report("selection", seconds_in_turn(works, repeats), dict.fromkeys(works, 0.0), "class by class")


if __name__ == "__main__":
    main()
