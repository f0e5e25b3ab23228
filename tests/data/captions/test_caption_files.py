"""Captions in the layouts that people have, and the rows of a store to which they belong."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from comodal.data.captions.caption_files import Caption, read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.errors import DataError

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(name: str, content: object) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return path

    return write_file


def karpathy(dataset: str, file: str, **more: object) -> dict:
    """Two images as the official dataset_*.json have them."""
    image = {"imgid": 7, "sentids": [1, 2], "filename": file, "split": "restval", **more}
    sentences = [
        {"raw": "A dog.\n", "tokens": ["a", "dog"], "sentid": 1, "imgid": 7},
        {"raw": "Two.", "tokens": ["two"]},
    ]
    other = {"filename": "other_12.jpg", "imgid": 8, "split": "val", "sentences": [{"raw": "A cat."}]}
    other |= {name: 12 for name in more if name == "cocoid"}
    return {"images": [image | {"sentences": sentences}, other], "dataset": dataset}


def said(path: Path) -> list[tuple[str, str | None]]:
    return [(caption.caption, caption.split) for caption in read_captions(path)]


URL = "http://lh6.ggpht.com/-IvRtNLNcG8o/TpFyrudaT6I/pizza.jpg"


@pytest.mark.parametrize("line", ["{caption}\t{url}", "{url}\t{caption}"])
def test_conceptual_captions_call_an_image_by_the_checksum_of_its_url_or_by_its_row(write, line):
    """The checksum is the one that gzip writes: `printf %s URL | gzip -c | tail -c8 | od -An -tu4`."""
    rows = [
        line.format(caption=caption, url=url)
        for caption, url in [("a very typical bus", "http://x.org/1"), ("pizza", URL)]
    ]
    read = read_captions(write("Train_GCC-training.tsv", "\n".join(rows) + "\n"))
    assert [caption.caption for caption in read] == ["a very typical bus", "pizza"]
    assert read.captions[1].image == ("3720680317", "1")
    assert match_captions(read, ["0", "1"]).pairs == list(zip(read, [0, 1], strict=True))
    assert match_captions(read, ["3720680317"]).pairs == [(read.captions[1], 0)]


def test_captions_with_numbers_behind_the_files_are_of_one_image(write):
    read = read_captions(
        write("Flickr8k.token.txt", "100_a.jpg#0\tA child .\n100_a.jpg#1\tA girl .\n9_b.jpg#0\tA dog .")
    )
    assert [row for _, row in match_captions(read, ["9_b", "100_a"]).pairs] == [1, 1, 0]


@pytest.mark.parametrize(
    ("content", "ids"),
    [
        (karpathy("coco", "COCO_val2014_000000391895.jpg", cocoid=391895), ["391895", "12"]),
        (karpathy("coco", "COCO_val2014_000000391895.jpg"), ["COCO_val2014_000000391895.jpg", "other_12.jpg"]),
        (karpathy("flickr30k", "1000092795.jpg"), ["1000092795", "other_12"]),
        (karpathy("flickr8k", "2513260012_03d33305cf.jpg"), ["2513260012_03d33305cf", "other_12"]),
        (karpathy("flickr8k", "2513260012_03d33305cf.jpg"), ["7", "8"]),
    ],
)  # fmt: skip
def test_karpathys_json_is_read_with_its_splits_and_any_name_of_the_image(write, content, ids):
    path = write("dataset.json", content)
    assert said(path) == [("A dog.", "train"), ("Two.", "train"), ("A cat.", "validation")]
    assert [row for _, row in match_captions(read_captions(path), ids).pairs] == [0, 0, 1]


def test_a_running_number_is_not_taken_for_the_id_of_another_image(write):
    """imgid 12 is not cocoid 12: the store has 391895 and 12, and the image with imgid 12 is not in it."""
    content = karpathy("coco", "COCO_val2014_000000391895.jpg", cocoid=391895)
    content["images"].append(
        {"filename": "a.jpg", "cocoid": 5, "imgid": 12, "split": "train", "sentences": [{"raw": "No."}]}
    )
    found = match_captions(read_captions(write("dataset_coco.json", content)), ["391895", "12"])
    assert [caption.caption for caption, _ in found.pairs] == ["A dog.", "Two.", "A cat."]
    assert [caption.caption for caption in found.unmatched] == ["No."]


def test_cocos_own_json_is_read(write):
    content = {
        "images": [{"id": 9, "file_name": "COCO_train2014_000000000009.jpg"}, {"id": 1, "file_name": "1.jpg"}],
        "annotations": [{"image_id": 9, "id": 48, "caption": "Bread"}, {"image_id": 77, "id": 49, "caption": "Lost"}],
    }
    read = read_captions(write("captions_train2014.json", content))
    assert [(caption.caption, caption.key) for caption in read] == [("Bread", "48")]
    assert read.refused == {"caption without image": 1, "image without caption": 1}
    assert match_captions(read, ["9"]).pairs == [(read.captions[0], 0)]


LINES = [
    {"image": "a/x.jpg", "caption": "One."},
    {"image": "b/y.jpg", "captions": ["Two.", "Three."], "split": "val"},
    {"img_path": "1000092795.jpg", "sentences": ["Four."], "id": 3},
]


@pytest.mark.parametrize("form", ["lines", "array", "one line"])
def test_json_lines_and_arrays_are_read(write, form):
    entries = LINES[:1] if form == "one line" else LINES
    text = json.dumps(entries) if form == "array" else "\n".join(map(json.dumps, entries)) + "\n\n"
    expected = [("One.", None), ("Two.", "validation"), ("Three.", "validation"), ("Four.", None)]
    path = write("captions.jsonl", text)
    assert said(path) == (expected[:1] if form == "one line" else expected)
    stores = {"x y 1000092795": [0, 1, 1, 2], "a/x b/y": [0, 1, 1], "a/x.jpg b/y.jpg 1000092795.jpg": [0, 1, 1, 2]}
    for ids, rows in stores.items():
        pairs = match_captions(read_captions(path), ids.split()).pairs
        assert [row for _, row in pairs] == (rows[:1] if form == "one line" else rows)


def test_the_originals_json_of_ids_and_captions_is_read_and_a_double_id_loses_nothing(write):
    read = read_captions(write("caption_train.json", '{"12": "One.", "34": ["Two.", "Three."], "12": "Four."}'))
    assert [(caption.caption, caption.image[0]) for caption in read] == [
        ("One.", "12"), ("Four.", "12"), ("Two.", "34"), ("Three.", "34"),
    ]  # fmt: skip


def test_flickr30k_entities_sentences_lose_their_marks(write, tmp_path):
    """In the form of the data set's own files; a mark may name several kinds."""
    marked = "[/EN#1/people A girl] in [/EN#2/clothing black] , seen from [/EN#0/notvisual behind] .\n\n"
    write("Sentences/100.txt", marked + "[/EN#1/people/other She] sits .\n")
    write("Sentences/200.txt", "[/EN#7/scene A street]")
    write("Sentences/300.txt", "Nothing is marked here .")
    write("train.txt", "200\n")
    write("test.txt", "100\n")
    for folder, unmarked in ((tmp_path / "Sentences", 1), (tmp_path, 1)):
        read = read_captions(folder)
        assert read.layout == "Flickr30k Entities" and read.refused == {"file without marked phrases": unmarked}
        assert [(one.image[0], one.caption, one.split) for one in sorted(read, key=lambda one: one.key)] == [
            ("100", "A girl in black , seen from behind .", "test"),
            ("100", "She sits .", "test"),
            ("200", "A street", "train"),
        ]


def test_a_folder_of_text_files_beside_images_is_read(write, tmp_path):
    for name in ("train/a.jpg", "val/b.PNG", "val/silent.jpg", "train/a.mp3"):
        write(name, "")
    for name, text in {
        "train/a.txt": "One.\n\n Two. \n",
        "val/b.txt": "Three.",
        "val/lost.txt": "Lost.",
        "val/silent.txt": "",
    }.items():
        write(name, text)
    write("val/wordless.jpg", "")
    read = read_captions(tmp_path)
    assert [(caption.caption, caption.split) for caption in read] == [
        ("One.", "train"),
        ("Two.", "train"),
        ("Three.", "validation"),
    ]
    assert read.refused == {"caption without image": 1, "caption is empty": 1, "image without caption": 1}
    for ids in (["a", "b"], ["train/a", "val/b"], ["train/a.jpg", "val/b.PNG"]):
        assert [row for _, row in match_captions(read, ids).pairs] == [0, 0, 1]


def test_what_is_not_taken_is_counted_by_reason(write):
    entries = [
        {"image": "a.jpg", "caption": "A dog"}, {"image": "a.jpg", "caption": " \n"},
        {"image": "a.jpg", "caption": None},
        {"image": "", "caption": "A cat"}, {"caption": "A cat"}, {"image": "b.jpg"}, {"image": "c.jpg", "captions": []},
        {"image": "c.jpg", "captions": ["Fine", 3]}, {"image": "d.jpg", "caption": "a\0b"},
        {"image": "e.jpg", "caption": "w" * 100_001},
    ]  # fmt: skip
    read = read_captions(write("captions.json", entries))
    assert [caption.caption for caption in read] == ["A dog", "Fine"]
    assert read.refused == {
        "caption is empty": 1, "caption is not text": 2, "caption without image": 2, "image without caption": 2,
        "caption has a null character": 1, "caption has more than 100,000 characters": 1,
    }  # fmt: skip
    tsv = read_captions(write("a.tsv", f"pizza\t{URL}\nno image\n\t{URL}\n"))
    assert len(tsv) == 1 and tsv.refused == {"caption without image": 1, "caption is empty": 1}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", '{"1": "a"', "a.json: not JSON"),
        ("a.jsonl", '{"image": "a", "caption": "b"}\n{"image": ', "a.jsonl, line 2: not JSON"),
        ("a.json", "[1, 2]", "does not have the layout that its first lines suggest: .*entry 0 is not an object: '1'"),
        ("a.json", '[{"image": "a", "caption": "b", "split": "maybe"}]', "a split is one of train, .*not 'maybe'"),
        ("a.json", '{"images": [{"filename": "a.jpg"}]}', "KeyError.'sentences'"),
        ("a.json", '{"info": {"year": 2014}}', "unknown layout of captions. Supported: Conceptual Capt"),
        ("a.txt", "A dog on the grass.\nA cat.\n", "unknown layout of captions.*the file begins with 'A dog"),
        ("a.txt", "", "unknown layout of captions"),
        ("a.json", "[]", r"\(JSON array\) has no caption of an image: it is empty"),
        ("a.json", "[" * 100_000, "a.json: JSON nested deeper than"),
        ("a.json", '[{"caption": "b"}]', "has no caption of an image: 1 x caption without image"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_with_its_path(write, name, content, message):
    path = write(name, content)
    with pytest.raises(DataError, match=message) as caught:
        read_captions(path)
    assert str(caught.value).startswith(str(path))


def test_a_missing_file_and_one_that_is_no_text_are_said(tmp_path):
    with pytest.raises(DataError, match="there is no such file or folder of captions"):
        read_captions(tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="is not text"):
        read_captions(tmp_path / "a.jpg")


def caption(name: str, text: str = "A.", split: str | None = None) -> Caption:
    return Caption((name,), text, split, "0")


def test_names_of_another_kind_are_shown_from_both_sides():
    captions = [caption(f"img{number}") for number in range(100)]
    with pytest.raises(
        DataError, match=r"0 of 100 captions match .*the captions name img0; img1; img2; the store has 7; 8; 9$"
    ):
        match_captions(captions, ["7", "8", "9"])
    with pytest.raises(DataError, match=r"1 of 100 captions match an image of the region store \(1 of 31 images\)"):
        match_captions(captions, ["img0", *map(str, range(30))])
    with pytest.raises(DataError, match="the store has nothing"):
        match_captions(captions, [])


def test_a_small_store_or_a_small_file_may_leave_much_unmatched():
    captions = [caption(f"img{number}") for number in range(100)]
    assert len(match_captions(captions, ["img5"]).pairs) == 1
    assert len(match_captions(captions[:1], [f"img{number}" for number in range(100)]).pairs) == 1


def test_of_an_id_that_is_in_the_store_twice_the_first_is_taken():
    assert match_captions([caption("a")], ["b", "a", "a"]).pairs == [(caption("a"), 1)]


named = st.tuples(st.integers(0, 9), st.sampled_from([None, "train", "validation", "test"]))


@given(st.lists(named, max_size=30))
def test_all_captions_of_an_image_are_in_one_split_and_none_is_lost(entries):
    ids = [f"image{row}" for row in range(10)]
    pairs = [(caption(ids[row], f"{number}", split), row) for number, (row, split) in enumerate(entries)]
    parts = split_matched_captions(pairs, ids, validation_fraction=0.2, test_fraction=0.2)
    assert sorted(pair for part in parts.values() for pair in part) == sorted(pairs)
    rows = [{row for _, row in part} for part in parts.values()]
    assert sum(map(len, rows)) == len(set().union(*rows))
    for split, part in parts.items():
        for _, row in part:
            own = {said for number, said in entries if number == row} - {None}
            assert split in own or not own


def test_what_a_file_leaves_open_is_split_by_the_image_alone():
    ids = [str(number) for number in range(4000)]
    parts = split_matched_captions(
        [(caption(name), row) for row, name in enumerate(ids)], ids, validation_fraction=0.05, test_fraction=0.1
    )
    assert len(parts["validation"]) == pytest.approx(200, abs=60) and len(parts["test"]) == pytest.approx(400, abs=80)
    alone = split_matched_captions([(caption("17"), 0)], ["17"], validation_fraction=0.05, test_fraction=0.1)
    assert next(split for split, part in alone.items() if part) == next(
        split for split, part in parts.items() if any(row == 17 for _, row in part)
    )


def test_a_store_of_several_folders_is_found_by_the_file_alone_or_with_its_folder():
    ids = ["train2014/COCO_train2014_000000000001", "val2014/COCO_val2014_000000000002", "a/same", "b/same"]
    alone = [Caption(("COCO_val2014_000000000002",), "a cat", None, "0"), Caption(("same",), "a dog", None, "1")]
    assert [row for _, row in match_captions(alone, ids).pairs] == [1]  # two images are called same: neither is meant


def test_karpathys_folder_is_part_of_a_name(tmp_path: Path):
    entry = {
        "filepath": "val2014",
        "filename": "COCO_val2014_000000000002.jpg",
        "cocoid": 2,
        "imgid": 0,
        "split": "val",
    }
    path = tmp_path / "dataset_coco.json"
    path.write_text(json.dumps({"images": [entry | {"sentences": [{"raw": "a cat"}]}], "dataset": "coco"}))
    assert [
        row for _, row in match_captions(read_captions(path), ["x", "val2014/COCO_val2014_000000000002"]).pairs
    ] == [1]
