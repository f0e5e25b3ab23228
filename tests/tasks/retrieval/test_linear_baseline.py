"""The linear maps of retrieval: captions that name what an image has, captions that name nothing of it, and leaks."""

import json
from pathlib import Path

import numpy as np
import pytest

from comodal.data.captions.caption_files import Caption
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.tasks.baselines.baseline_scores import BaselineOptions
from comodal.tasks.retrieval.gallery import Gallery
from comodal.tasks.retrieval.linear_baseline import rank_by_linear_maps

COLORS, SHAPES = ("red", "green", "blue", "white"), ("ball", "cube", "cone", "ring", "star")
NUM_COMBINATIONS = len(COLORS) * len(SHAPES)
TRAINED, EVALUATED = range(5 * NUM_COMBINATIONS), range(5 * NUM_COMBINATIONS, 6 * NUM_COMBINATIONS)


def describe(image: int) -> str:
    """The evaluated images are all different combinations."""
    return f"a {COLORS[image % 4]} {SHAPES[image % 5]}"


def write_store(folder: Path, is_described: bool = True, empty: int | None = None) -> RegionStore:
    """One region has the color, the other the shape; or both are noise."""
    rng = np.random.default_rng(0)
    with RegionWriter(folder, 12, about={"detector": "by hand"}) as writer:
        for image in (*TRAINED, *EVALUATED):
            features = rng.normal(0, 0.1, (2, 12)).astype(np.float32)
            if is_described:
                features[0, image % 4] += 2
                features[1, 4 + image % 5] += 2
            boxes = np.array([[0, 0, 4, 9], [5, 0, 9, 9]], np.float32)
            count = 0 if image == empty else 2
            writer.add(f"image{image}", features[:count], boxes[:count], 9, 9)
    return RegionStore(folder)


def write_captions(path: Path, images: range, text: str | None = None) -> Path:
    entries = [{"image": f"image{image}.jpg", "caption": text or describe(image)} for image in images]
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def build_gallery(store: RegionStore) -> Gallery:
    pairs = [
        (Caption((f"image{image}",), describe(image), None, str(image)), store.ids.index(f"image{image}"))
        for image in EVALUATED
    ]
    return Gallery(pairs, store, WordPieceTokenizer.from_texts(list(map(describe, EVALUATED))))


def test_captions_that_name_color_and_shape_find_their_image(tmp_path: Path):
    gallery = build_gallery(write_store(tmp_path / "regions"))
    captions = write_captions(tmp_path / "captions.jsonl", TRAINED)
    found = rank_by_linear_maps(BaselineOptions(captions), gallery)
    assert found.about == "captions.jsonl: linear maps fitted on 100 captions of 100 training images"
    assert found.ranks is not None
    for ranks in found.ranks:
        assert np.mean(ranks < 1) >= 0.9


def test_captions_that_name_nothing_of_an_image_find_it_by_chance(tmp_path: Path):
    gallery = build_gallery(write_store(tmp_path / "regions", is_described=False))
    ranks = rank_by_linear_maps(BaselineOptions(write_captions(tmp_path / "c.jsonl", TRAINED)), gallery).ranks
    assert ranks is not None
    # ranks of 20 candidates are 9.5 on average by chance, with a standard error of 1.3 for 20 queries
    assert abs(np.mean(ranks.text_to_image) - 9.5) < 4


def test_an_image_without_regions_is_never_before_one_that_matches(tmp_path: Path):
    gallery = build_gallery(write_store(tmp_path / "regions", empty=EVALUATED[3]))
    ranks = rank_by_linear_maps(BaselineOptions(write_captions(tmp_path / "c.jsonl", TRAINED)), gallery).ranks
    assert ranks is not None
    others = [index for index, image in enumerate(EVALUATED) if image != EVALUATED[3]]
    assert np.mean(ranks.text_to_image[others] < 1) >= 0.9
    assert ranks.image_to_text[3] == 19  # equal scores for all captions: the worst rank


def test_images_of_the_gallery_are_left_out(tmp_path: Path):
    store = write_store(tmp_path / "regions")
    gallery = build_gallery(store)
    both = write_captions(tmp_path / "both.jsonl", range(EVALUATED.stop))
    assert "fitted on 100 captions of 100 training" in rank_by_linear_maps(BaselineOptions(both), gallery).about
    for images, text, reason in ((EVALUATED, None, "0 training images"), (TRAINED, "...", "have no words")):
        captions = write_captions(tmp_path / "c.jsonl", images, text)
        found = rank_by_linear_maps(BaselineOptions(captions), gallery)
        assert found.ranks is None and found.about.startswith("not fitted: c.jsonl: ") and reason in found.about
    assert rank_by_linear_maps(BaselineOptions(), gallery).about == "not fitted: --train-data was not given"


def test_regions_of_another_network_are_told(tmp_path: Path):
    gallery = build_gallery(write_store(tmp_path / "regions"))
    with RegionWriter(tmp_path / "other", 3, about={"detector": "by hand"}) as writer:
        writer.add("image0", np.ones((1, 3), np.float32), np.array([[0, 0, 4, 9]], np.float32), 9, 9)
    options = BaselineOptions(write_captions(tmp_path / "c.jsonl", TRAINED), tmp_path / "other")
    with pytest.raises(DataError, match=r"other: regions of 3 features, and .*regions has 12"):
        rank_by_linear_maps(options, gallery)
