"""Captions in CSV: Flickr8k's and Flickr30k's files, and the metadata of Hugging Face's ImageFolder."""

from pathlib import Path

import pytest

from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions
from comodal.errors import DataError


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def pairs_of(path: Path) -> list[tuple[str, str, str | None]]:
    return [(one.image[2], one.caption, one.split) for one in read_captions(path)]


def test_flickr8k(tmp_path: Path):
    path = written(
        tmp_path / "captions.txt",
        "image,caption\n"
        "1000268201_693b08cb0e.jpg,A child in a pink dress is climbing up a set of stairs in an entry way .\n"
        '1001773457_577c3a7d70.jpg,"A black dog , and a ""spotted"" dog are fighting"\n'
        "1002674143_1b742ab4b8.jpg,A little girl, covered in paint\n",
    )
    assert pairs_of(path) == [
        ("1000268201_693b08cb0e.jpg", "A child in a pink dress is climbing up a set of stairs in an entry way .", None),
        ("1001773457_577c3a7d70.jpg", 'A black dog , and a "spotted" dog are fighting', None),
        ("1002674143_1b742ab4b8.jpg", "A little girl, covered in paint", None),
    ]


def test_flickr30k_with_its_broken_row(tmp_path: Path):
    path = written(
        tmp_path / "results.csv",
        "image_name| comment_number| comment\n"
        '1000092795.jpg| 0| Two "young guys with shaggy hair .\n'
        "2199200615.jpg| 4   A dog runs across the grass .\n"
        "1000092795.jpg| 1| Two young , White males | outside .\n",
    )
    read = read_captions(path)
    assert pairs_of(path) == [
        ("1000092795.jpg", 'Two "young guys with shaggy hair .', None),
        ("1000092795.jpg", "Two young , White males | outside .", None),
    ]
    assert read.refused == {"row is cut short": 1}
    assert [row for _, row in match_captions(read, ["1000092795"]).pairs] == [0, 0]


def test_flickr30k_of_hugging_face(tmp_path: Path):
    path = written(
        tmp_path / "flickr_annotations_30k.csv",
        "raw,sentids,split,filename,img_id\n"
        '"[""Two young guys."", ""Two \\""White\\"" males.""]","[0, 1]",train,1000092795.jpg,0\n'
        '"[""A man.""]","[2]",test,10002456.jpg,1\n',
    )
    assert pairs_of(path) == [
        ("1000092795.jpg", "Two young guys.", "train"),
        ("1000092795.jpg", 'Two "White" males.', "train"),
        ("10002456.jpg", "A man.", "test"),
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", 'file_name,text\na/0.png,a dog\n1.png,"a cat,\n asleep"\n'),
        ("metadata.csv", "\ufeffFile_Name;Text\na/0.png;a dog\n1.png;a cat, asleep\n"),
        ("metadata.tsv", "filepath\ttitle\na/0.png\ta dog\n1.png\ta cat, asleep\n"),
        (
            "metadata.jsonl",
            '{"file_name": "a/0.png", "text": "a dog"}\n{"file_name": "1.png", "text": "a cat, asleep"}\n',
        ),
    ],
)
def test_file_name_and_text(tmp_path: Path, name: str, content: str):
    assert [(i, c) for i, c, _ in pairs_of(written(tmp_path / name, content))] == [
        ("0.png", "a dog"),
        ("1.png", "a cat, asleep"),
    ]


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_an_image_folder_has_metadata_in_each_split(tmp_path: Path, name: str):
    for split in ("train", "test"):
        line = f"file_name,text\n{split}.png,a dog in {split}\n"
        if name.endswith("jsonl"):
            line = f'{{"file_name": "{split}.png", "text": "a dog in {split}"}}\n'
        written(tmp_path / split / name, line)
        (tmp_path / split / f"{split}.png").touch()
    read = read_captions(tmp_path)
    assert sorted(pairs_of(tmp_path)) == [
        ("test.png", "a dog in test", "test"),
        ("train.png", "a dog in train", "train"),
    ]
    assert len(match_captions(read, ["train/train", "test/test"]).pairs) == 2


def test_urls_are_called_as_in_the_originals_features(tmp_path: Path):
    path = written(tmp_path / "cc.tsv", "url\tcaption\nhttp://a/b.jpg\ta dog\n")
    (caption,) = read_captions(path)
    assert caption.image == ("241104546", "0") and caption.caption == "a dog"


def test_a_quote_that_never_closes_is_told_by_name(tmp_path: Path):
    with pytest.raises(DataError, match=r"captions\.csv: not a table"):
        read_captions(written(tmp_path / "captions.csv", 'image,caption\n1.jpg,"a dog\n2.jpg,b\n'))
