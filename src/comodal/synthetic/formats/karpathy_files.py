"""Captions as Karpathy's split files of COCO and Flickr30k, and as the original ViLBERT's own lists of Flickr30k.

dataset_coco.json, dataset_flickr30k.json             images with their sentences, tokens and split
all_data_final_{train,val_set0,test_set0}_2014.jsonline     img_path, sentences, id
"""

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from comodal.files import write_bytes_atomically
from comodal.synthetic.scenes.media_writers import encode_json, format_json_lines
from comodal.synthetic.scenes.object_scenes import SceneImage
from comodal.synthetic.scenes.sentences import generate_crowd_captions

VILBERT_LIST_NAMES = {"train": "train", "val": "val_set0", "test": "test_set0"}


class CaptionedImage(NamedTuple):
    """An image in a split; `cocoid` is its COCO id, if it is of COCO."""

    image: SceneImage
    split: str
    cocoid: int | None = None


def write_karpathy(path: Path, dataset: str, captioned_images: Iterable[CaptionedImage]) -> list[list[str]]:
    """Write the split file; returns the sentences of each image."""
    images: list[dict[str, Any]] = []
    sentences_by_image: list[list[str]] = []
    for image_index, (scene_image, split, cocoid) in enumerate(captioned_images):
        sentences: list[dict[str, Any]] = []
        for sentence_index, text in enumerate(generate_crowd_captions(scene_image.world)):
            tokens = text.lower().replace(",", "").removesuffix(".").split()
            sentences.append(
                {"tokens": tokens, "raw": text, "imgid": image_index, "sentid": 5 * image_index + sentence_index}
            )
        file = PurePosixPath(scene_image.file)
        image: dict[str, Any] = {"filename": file.name, "imgid": image_index, "split": split, "sentences": sentences}
        image["sentids"] = [sentence["sentid"] for sentence in sentences]
        images.append(image if cocoid is None else {**image, "filepath": file.parent.name, "cocoid": cocoid})
        sentences_by_image.append([sentence["raw"] for sentence in sentences])
    write_bytes_atomically(path, encode_json({"images": images, "dataset": dataset}))
    return sentences_by_image


def write_vilbert_lists(
    folder: Path, captioned_images: Sequence[CaptionedImage], sentences_by_image: Sequence[Sequence[str]]
) -> None:
    """The same images as the original ViLBERT's lists for retrieval."""
    for split, name in VILBERT_LIST_NAMES.items():
        records = [
            {"sentences": list(sentences), "id": str(index), "img_path": PurePosixPath(scene_image.file).name}
            for index, ((scene_image, image_split, _), sentences) in enumerate(
                zip(captioned_images, sentences_by_image, strict=True)
            )
            if image_split == split
        ]
        write_bytes_atomically(folder / f"all_data_final_{name}_2014.jsonline", format_json_lines(records).encode())
