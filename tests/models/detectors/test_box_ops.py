"""Boxes by torchvision's kernels, called without torchvision, are those of torchvision."""

import torch
import torchvision

from comodal.models.detectors import box_ops


def drawn(count: int, generator: torch.Generator) -> torch.Tensor:
    corners = 20 * torch.rand(count, 2, 2, generator=generator)
    return corners.sort(1).values.flatten(1)


def test_the_same_boxes_are_kept():
    generator = torch.Generator().manual_seed(0)
    boxes, scores = drawn(200, generator), torch.rand(200, generator=generator)
    for threshold in (0.1, 0.5):
        kept = box_ops.nms(boxes, scores, threshold)
        assert torch.equal(kept, torchvision.ops.nms(boxes, scores, threshold)) and 0 < len(kept) < 200


def test_cells_are_the_same():
    generator = torch.Generator().manual_seed(0)
    maps, boxes = torch.rand(2, 5, 12, 10, generator=generator), [drawn(count, generator) for count in (3, 4)]
    for scale, samples, aligned in ((1.0, -1, True), (0.5, 2, False)):
        ours = box_ops.roi_align(maps, boxes, 3, scale, samples, aligned)
        assert torch.equal(ours, torchvision.ops.roi_align(maps, boxes, 3, scale, samples, aligned))


def test_kernels_come_without_importing_torchvision(monkeypatch):
    """What the library of this version of torchvision is called is known."""
    loaded = []
    monkeypatch.delitem(box_ops.sys.modules, "torchvision")
    monkeypatch.setattr(box_ops.torch.ops, "load_library", loaded.append)
    monkeypatch.setattr(box_ops.importlib, "import_module", loaded.append)
    box_ops.load_torchvision_kernels.__wrapped__()
    (path,) = loaded
    assert path.parent.name == "torchvision" and path.is_file()


def test_without_the_library_torchvision_is_imported(monkeypatch):
    loaded = []
    monkeypatch.setattr(box_ops, "TORCHVISION_LIBRARIES", ("missing.so",))
    monkeypatch.setattr(box_ops.importlib, "import_module", loaded.append)
    box_ops.load_torchvision_kernels.__wrapped__()
    assert loaded == ["torchvision"]
