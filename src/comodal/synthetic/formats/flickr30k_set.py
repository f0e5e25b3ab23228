"""One set of images in the layout of Flickr30k, for caption-based retrieval and SNLI-VE.

flickr30k-images/NUMBER.jpg, and boxes.jsonl for `prepare regions --boxes`
dataset_flickr30k.json, all_data_final_*.jsonline     captions (synthetic/formats/karpathy_files.py)
snli_ve_{train,dev,test}.jsonl                        statements (synthetic/formats/snli_ve_files.py)
"""

from collections.abc import Callable
from pathlib import Path

from comodal.synthetic.formats.karpathy_files import CaptionedImage, write_karpathy, write_vilbert_lists
from comodal.synthetic.formats.snli_ve_files import write_statements
from comodal.synthetic.scenes.object_scenes import list_image_jobs, list_scene_images, write_scene_boxes
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.scenes.world import Purpose

FIRST_IMAGE_ID = 1_000_092_795  # in the style of Flickr's ids


def list_flickr30k_files(options: SynthesisOptions) -> list[str]:
    """All images."""
    return [f"{FIRST_IMAGE_ID + 7919 * index}.jpg" for index in range(options.scenes)]


def list_flickr30k_jobs(folder: Path, options: SynthesisOptions) -> list[Callable[[], None]]:
    """The jobs that render the images."""
    return list_image_jobs(
        folder / "flickr30k-images", options.seed, Purpose.FLICKR30K, list_flickr30k_files(options), options.side
    )


def write_flickr30k_lists(folder: Path, options: SynthesisOptions) -> dict[str, int]:
    """Write all captions and statements; returns the counts."""
    scene_images = list_scene_images(options.seed, Purpose.FLICKR30K, list_flickr30k_files(options), options.side)
    captioned = [CaptionedImage(p, {8: "val", 9: "test"}.get(p.index % 10, "train")) for p in scene_images]
    sentences_by_image = write_karpathy(folder / "dataset_flickr30k.json", "flickr30k", captioned)
    write_vilbert_lists(folder, captioned, sentences_by_image)
    statements = write_statements(folder, captioned, sentences_by_image)
    write_scene_boxes(folder / "boxes.jsonl", scene_images, options.side)
    return {"images": len(scene_images), "captions": sum(map(len, sentences_by_image)), "statements": statements}
