"""COCO's and Visual Genome's numbers overlap; image 0 is an image; a replaced file is another file."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.data.sources.file_batches import EmbeddingRows, FileJob, is_job_done, write_embedding_rows
from comodal.files import fingerprint_file
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.regions.image_list import list_images
from comodal.tasks.vision_language.image_rows import ImageRows


def store_of(folder: Path, *names: str) -> RegionStore:
    with RegionWriter(folder, 1) as writer:
        for name in names:
            writer.add(name, np.ones((1, 1), np.float32), np.array([[0, 0, 9, 9]], np.float32), 9, 9)
    return RegionStore(folder)


def test_numbers_of_two_data_sets_in_one_store_are_kept_apart(tmp_path: Path):
    store = store_of(tmp_path / "s", "coco/COCO_val2014_000000000042", "VG_100K/42", "VG_100K/7", "000000000009")
    coco, genome, either = (ImageRows(store, numbers) for numbers in ("coco", "visual_genome", None))
    assert [coco.find(name) for name in ("42", "7", "9", "COCO_val2014_000000000042.jpg")] == [0, None, 3, 0]
    assert [genome.find(name) for name in ("42", "7", "9", "42.jpg")] == [1, 2, None, 1]
    assert [either.find(name) for name in ("42", "7", "9")] == [None, 2, 3]


def test_bare_numbers_are_cocos_in_a_store_without_its_names(tmp_path: Path):
    store = store_of(tmp_path / "s", "42", "7")
    assert [ImageRows(store, "coco").find(name) for name in ("42", "000000000007", "9")] == [0, 1, None]


@pytest.mark.parametrize("order", [1, -1])
def test_captions_of_coco_find_cocos_images(tmp_path: Path, order: int):
    numbers = range(1, 21)
    images = [{"id": number, "file_name": f"COCO_val2014_{number:012d}.jpg"} for number in numbers]
    annotations = [{"id": number, "image_id": number, "caption": "a dog"} for number in numbers]
    (tmp_path / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    names = [*(str(number) for number in numbers), *(f"COCO_val2014_{number:012d}" for number in range(1, 11))][::order]
    found = match_captions(read_captions(tmp_path / "captions.json"), names)
    assert {names[row] for _, row in found.pairs} == {f"COCO_val2014_{number:012d}" for number in range(1, 11)}
    assert len(found.unmatched) == 10


@pytest.mark.parametrize("name", ["image", "img_path", "id"])
def test_image_0_is_an_image(tmp_path: Path, name: str):
    lines = "".join(json.dumps({name: number, "caption": f"dog {number}"}) + "\n" for number in range(3))
    (tmp_path / "captions.jsonl").write_text(lines)
    read = read_captions(tmp_path / "captions.jsonl")
    assert len(read) == 3 and not read.refused
    assert [row for _, row in match_captions(read, ["0", "1", "2"]).pairs] == [0, 1, 2]


def test_a_file_that_was_replaced_under_its_name_is_another(tmp_path: Path):
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.bmp")
    before, listed = fingerprint_file(tmp_path / "a.bmp"), list_images(tmp_path).compute_fingerprint(tmp_path)
    Image.new("RGB", (20, 20), "red").save(tmp_path / "a.bmp")
    assert (fingerprint_file(tmp_path / "a.bmp"), list_images(tmp_path).compute_fingerprint(tmp_path)) == (
        before,
        listed,
    )
    Image.new("RGB", (20, 20), "blue").save(tmp_path / "a.bmp")  # as many bytes
    assert fingerprint_file(tmp_path / "a.bmp") != before
    assert list_images(tmp_path).compute_fingerprint(tmp_path) != listed


def test_a_result_is_done_for_the_file_that_it_was_provenance(tmp_path: Path):
    source, result = tmp_path / "a.wav", tmp_path / "a.npz"
    source.write_bytes(b"first")
    job = FileJob(source, (result,))
    assert not is_job_done(job)
    write_embedding_rows(result, [EmbeddingRows(np.ones((2, 3), np.float32), np.arange(2.0))], {"made": "by"}, source)
    assert is_job_done(job)
    with np.load(result) as arrays:
        assert arrays["embedding"].shape == (2, 3)
    source.write_bytes(b"other")
    assert not is_job_done(job)
    write_embedding_rows(result, [EmbeddingRows(np.ones((2, 3), np.float32), np.arange(2.0))])
    assert is_job_done(job)  # a result that does not say what it was made from is kept


def test_very_long_texts_are_cut_before_they_are_read():
    words = WordPieceTokenizer.from_texts(["a dog runs", "x."])
    assert words.encode("a dog " * 10**6, 12) == words.encode("a dog " * 10, 12)
    assert words.encode("a" * 10**7) == [words.cls_id, words.unknown_id, words.sep_id]
    assert words.encode(" " * 20_000 + "dog", 12) == words.encode("dog", 12)
    assert words.encode_all(["a dog " * 10**5], 12).num_truncated == 1
