"""One set of images in the layout of COCO, for VQA v2, RefCOCO+ and Karpathy's captions.

images/{train2014,val2014,test2015}/COCO_SPLIT_NUMBER.jpg, and boxes.jsonl for `prepare regions --boxes`
vqa/            VQA v2 (synthetic/formats/vqa_set.py)
refcoco+/       referring expressions for the images of train2014 (synthetic/formats/refcoco_set.py)
dataset_coco.json
"""

from collections.abc import Callable
from pathlib import Path

from comodal.synthetic.formats.karpathy_files import CaptionedImage, write_karpathy
from comodal.synthetic.formats.refcoco_set import write_references
from comodal.synthetic.formats.vqa_set import write_vqa
from comodal.synthetic.scenes.object_scenes import SceneImage, list_image_jobs, list_scene_images, write_scene_boxes
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import Purpose

COCO_SPLITS = ("train2014", "val2014", "test2015")
KARPATHY_SPLITS = ("val", "val", "test", "test", "restval")  # of COCO's validation images, in turn


def assign_coco_split(index: int) -> str:
    """Eight of ten images for training."""
    return {8: "val2014", 9: "test2015"}.get(index % 10, "train2014")


def list_coco_files(options: SynthesisOptions) -> list[str]:
    """All images; their image ids are counted from 1."""
    splits = map(assign_coco_split, range(options.scenes))
    return [f"{split}/COCO_{split}_{image_id:012d}.jpg" for image_id, split in enumerate(splits, start=1)]


def list_coco_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the images."""
    return list_image_jobs(folder / "images", options.seed, Purpose.COCO, list_coco_files(options), options.side)


def write_coco_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write all questions, expressions and captions; returns the counts."""
    scene_images = list_scene_images(options.seed, Purpose.COCO, list_coco_files(options), options.side)
    parts: dict[str, list[tuple[int, SceneImage]]] = {split: [] for split in COCO_SPLITS}
    for image_id, scene_image in enumerate(scene_images, start=1):
        parts[assign_coco_split(scene_image.index)].append((image_id, scene_image))
    questions = write_vqa(folder / "vqa", parts)
    sentences = write_references(folder / "refcoco+", parts["train2014"], options.side)
    captioned = [CaptionedImage(scene_image, "train", image_id) for image_id, scene_image in parts["train2014"]]
    for index, (image_id, scene_image) in enumerate(parts["val2014"]):
        captioned.append(CaptionedImage(scene_image, KARPATHY_SPLITS[index % len(KARPATHY_SPLITS)], image_id))
    sentences_by_image = write_karpathy(folder / "dataset_coco.json", "coco", captioned)
    write_scene_boxes(folder / "boxes.jsonl", scene_images, options.side)
    counts = {"images": len(scene_images), "questions": questions, "expressions": sentences}
    return {**counts, "captions": sum(map(len, sentences_by_image))}
