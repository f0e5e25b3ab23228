"""RoIPool is torchvision's, bit for bit."""

import pytest
import torch
from torchvision.ops import roi_pool

from comodal.models.detectors.detector_c4 import C4, C4Config, optimize_c4_layout
from comodal.models.detectors.detector_rules import C4Postprocessing, detect_caffe_regions
from comodal.models.detectors.roi_pooling import build_maxima, pool_rois
from tests.support.plain_detector import PlainC4, same_c4


def boxes_on(rows: int, columns: int) -> torch.Tensor:
    """Boxes anywhere in a picture of so many cells of 16 pixels, and odd ones."""
    generator = torch.Generator().manual_seed(rows)
    ends = torch.rand(2, 60, 2, generator=generator) * torch.tensor([columns, rows]) * 16
    right, bottom = columns * 16 - 1, rows * 16 - 1
    odd = [[0, 0, right, bottom], [right, bottom, right, bottom], [8, 8, 24, 40], [5, 5, 5, 5], [0, 0, 7.9, 8]]
    outside = [[-40, -9, 30, 20], [right - 3, 0, right + 90, bottom + 60], [right + 40, 0, right + 90, 9]]
    return torch.cat([torch.cat([ends.amin(0), ends.amax(0)], 1), torch.tensor(odd + outside)])


@pytest.mark.parametrize("rows, columns", [(38, 63), (12, 16), (2, 63), (1, 1), (90, 150)])
@pytest.mark.parametrize("bins", [14, 7])
def test_it_is_torchvisions(rows: int, columns: int, bins: int):
    torch.manual_seed(columns)
    feature_map, boxes = torch.randn(1, 5, rows, columns), boxes_on(rows, columns)
    wanted = roi_pool(feature_map, [boxes], bins, 1 / 16)
    found = pool_rois(build_maxima(feature_map, bins), boxes, bins, 1 / 16)
    assert torch.equal(found, wanted)
    assert found.is_contiguous(memory_format=torch.channels_last)
    rough = pool_rois(build_maxima(feature_map.bfloat16(), bins), boxes, bins, 1 / 16)
    assert torch.equal(rough, wanted.bfloat16())


@torch.no_grad()
def test_the_fast_network_is_the_plain_one():
    """Norms as layers, torchvision's RoIPool, all regions at once, class after class: plain_detector.py."""
    torch.manual_seed(0)
    config = C4Config(blocks=(1, 2, 2, 1), stem=8, width=4, proposal_channels=16, classes=30, attributes=5, embedding=4)
    plain = PlainC4(config).eval()
    plain.rest.cell_anchors.copy_(torch.tensor([[-30.0, -20, 45, 35]]).repeat(12, 1) * torch.arange(1, 13)[:, None])
    model: C4 = optimize_c4_layout(same_c4(plain, config))
    picture, rules = (
        torch.randint(0, 256, (120, 200, 3), dtype=torch.uint8),
        C4Postprocessing(size=120, post_nms_top_k=50, max_regions=20, min_regions=5),
    )
    found = detect_caffe_regions(model, picture, rules)
    pixels = picture.flip(2).permute(2, 0, 1).float() - torch.tensor([102.9801, 115.9465, 122.7717])[:, None, None]
    wanted = plain(pixels[None], 1.0, rules)
    assert torch.equal(found.proposal_indices, wanted.proposal_indices)
    torch.testing.assert_close(found.boxes, wanted.boxes, rtol=0, atol=1e-2)
    torch.testing.assert_close(found.features, wanted.features, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.classes, wanted.classes, rtol=1e-4, atol=1e-4)
