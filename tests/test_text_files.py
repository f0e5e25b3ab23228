"""Text, JSON, JSON Lines, CSV and YAML: what is a line, what is refused, and that nothing else reads them."""

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import comodal
from comodal.data.captions.caption_files import read_captions
from comodal.data.sources.video_sources import read_sources
from comodal.errors import CheckpointError, ComodalError, DataError, RecipeError
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.checkpoint import read_model_config
from comodal.tasks.vision_language.answer_files import read_answer_vocabulary
from comodal.tasks.vision_language.snli_ve import read_snli_ve_sentences
from comodal.text_files import (
    MAX_NESTING_DEPTH,
    decode_text,
    parse_csv,
    read_json,
    read_json_lines,
    read_json_object,
    read_lines,
    read_log,
    read_text,
    read_yaml,
    split_lines,
)
from tests.support.paths import FIXTURES

LABELS = FIXTURES / "labels"  # files that were once read wrongly
SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"  # where str.splitlines ends a line, and no file format does
BOM = b"\xef\xbb\xbf"


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_lines_end_at_line_feeds_alone(tmp_path: Path):
    path = written(tmp_path / "a.txt", BOM + f"one{SEPARATORS}more\r\ntwo\rthree\n\nfour".encode())
    assert read_lines(path) == [f"one{SEPARATORS}more", "two", "three", "", "four"]
    assert read_lines(written(path, "last\n")) == ["last"]
    assert read_lines(written(path, "")) == []


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1)))
def test_what_is_joined_with_line_feeds_comes_back(lines: list[str]):
    assert split_lines("\n".join(lines)) == lines


def test_a_vocabulary_may_have_separators_as_pieces(tmp_path: Path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "\u2027", "\u2028", "\u2030", "dog", "##s"]
    words = WordPieceTokenizer.read(written(tmp_path / "vocab.txt", "\n".join(pieces) + "\n"))
    assert words.encode("a dogs") == [2, 5, 9, 10, 3]


def test_reported_files_with_separators_and_a_byte_order_mark():
    assert WordPieceTokenizer.read(LABELS / "vocab_with_u2028.txt").encode("a dogs") == [2, 5, 9, 10, 3]
    sentences, left_out = read_snli_ve_sentences(LABELS / "snli_ve_u2028.jsonl")
    assert [(one.text, one.label) for one in sentences] == [
        ("A dog\u2028runs.", "neutral"),
        ("A dog\x85runs.", "entailment"),
    ]
    assert not left_out
    assert read_answer_vocabulary(LABELS / "answers_bom.txt") == ["yes", "no"]


@pytest.mark.parametrize("separator", SEPARATORS[:3])
def test_a_sentence_may_have_separators(tmp_path: Path, separator: str):
    entries = [
        {"Flickr30K_ID": "1", "pairID": "1.jpg#0r1n", "sentence2": "A dog runs.", "gold_label": "neutral"},
        {
            "Flickr30K_ID": "1",
            "pairID": "1.jpg#0r1e",
            "sentence2": f"A dog{separator}runs.",
            "gold_label": "entailment",
        },
    ]
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    statements, left_out = read_snli_ve_sentences(written(tmp_path / "snli_ve.jsonl", lines))
    assert [(one.text, one.label) for one in statements] == [
        ("A dog runs.", "neutral"),
        (f"A dog{separator}runs.", "entailment"),
    ]
    assert not left_out
    captions = "".join(
        json.dumps({"image": "1.jpg", "caption": e["sentence2"]}, ensure_ascii=False) + "\n" for e in entries
    )
    read = read_captions(written(tmp_path / "captions.jsonl", captions))
    assert [one.caption for one in read] == ["A dog runs.", "A dog runs."]  # white space becomes a blank


def test_a_byte_order_mark_is_no_part_of_the_first_value(tmp_path: Path):
    assert read_answer_vocabulary(written(tmp_path / "answers.txt", BOM + b"yes\nno\n")) == ["yes", "no"]
    assert read_json(written(tmp_path / "a.json", BOM + b'{"a": 1}')) == {"a": 1}
    assert list(read_json_lines(written(tmp_path / "a.jsonl", BOM + b'{"a": 1}\n\n{"a": 2}'))) == [
        (1, {"a": 1}),
        (3, {"a": 2}),
    ]
    assert read_yaml(written(tmp_path / "a.yaml", BOM + b"a: 1\n")) == {"a": 1}


READERS = {
    "a.txt": read_text,
    "vocab.txt": WordPieceTokenizer.read,
    "answers.txt": read_answer_vocabulary,
    "answers.json": read_answer_vocabulary,
    "a.json": read_json,
    "a.jsonl": lambda path: list(read_json_lines(path)),
    "snli_ve.jsonl": read_snli_ve_sentences,
    "a.yaml": read_yaml,
    "captions.csv": read_captions,
    "captions.tsv": read_captions,
    "captions.json": read_captions,
    "captions.jsonl": read_captions,
    "kinetics.csv": lambda path: list(read_sources(path)),
}
CONTENTS = {
    ".json": '["yes", "no"]',
    ".jsonl": '{"image": "a.jpg", "caption": "a dog"}\n',
    ".yaml": "a: 1\n",
    ".csv": "image,caption\na.jpg,a dog\n",
    ".tsv": "a dog\thttp://a.b/c.jpg\n",
    ".txt": "[PAD]\nyes\n",
}


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-16", "utf-32-le", "utf-32-be", "utf-32"])
@pytest.mark.parametrize("name", READERS)
def test_wide_encodings_are_refused_by_name(tmp_path: Path, name: str, encoding: str):
    """Without a byte order mark, ASCII text in them is valid UTF-8 with null bytes."""
    path = written(tmp_path / name, CONTENTS[Path(name).suffix].encode(encoding))
    with pytest.raises(ComodalError, match=rf"{name} is not text: it is {encoding[:6].upper()}; save it as UTF-8"):
        READERS[name](path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("狗在跑\n".encode("utf-16-le"), "is not text"),
        (b"a dog\0 runs\n", "byte 5 is 0"),
        ("a café\n".encode("latin-1"), "byte 5 is not UTF-8"),
        (bytes(100), "is not text"),
    ],
)
def test_other_bytes_are_no_text(tmp_path: Path, content: bytes, said: str):
    with pytest.raises(DataError, match=rf"a\.txt is not text.*{said}|{said}"):
        read_text(written(tmp_path / "a.txt", content))


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
def test_every_text_without_a_null_character_is_read(text: str):
    expected = io.TextIOWrapper(io.BytesIO(text.encode()), "utf-8-sig").read()  # Python's universal newlines
    assert decode_text(text.encode(), "a.txt") == expected


@pytest.mark.parametrize(
    ("content", "key"), [('{"a": 1, "b": 2, "a": 3}', "a"), ('[{"b": {"a": 1, "a": 1}}]', "a"), ('{"": 1, "": 2}', "")]
)
def test_a_key_that_is_twice_in_a_json_object_is_refused(tmp_path: Path, content: str, key: str):
    """Python's parser keeps the last value."""
    with pytest.raises(DataError, match=rf"a\.json: the key '{key}' is twice in one JSON object"):
        read_json(written(tmp_path / "a.json", content))
    if content.startswith("{"):
        with pytest.raises(DataError, match=rf"a\.jsonl, line 2: the key '{key}' is twice"):
            list(read_json_lines(written(tmp_path / "a.jsonl", "{}\n" + content)))


def test_an_image_may_be_twice_in_an_object_of_captions_and_no_other_key(tmp_path: Path):
    path = tmp_path / "captions.json"
    read = read_captions(written(path, '{"1.jpg": "a dog", "2.jpg": "a cat", "1.jpg": ["it runs", "fast"]}'))
    assert [one.caption for one in read] == ["a dog", "it runs", "fast", "a cat"]
    for content in (
        '{"image": "1.jpg", "image": "2.jpg", "caption": "a dog"}',
        '{"images": [], "images": [], "annotations": []}',
        '[{"image": "1.jpg", "caption": "a dog", "caption": "a cat"}]',
        '{"image": "1.jpg", "caption": "a"}\n{"image": "1.jpg", "caption": "a dog", "caption": "a cat"}',
    ):
        with pytest.raises(DataError, match=r"captions\.json.* is twice in one JSON object"):
            read_captions(written(path, content))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' is twice"),
        ("a: {b: 1, b: 1}\n", "the key 'b' is twice"),
        ("a: [{'b': 1, b: 1}]\n", "the key 'b' is twice"),
        ("1: a\n0x1: b\n", "the key 1 is twice"),
        ("a: {<<: {b: 1}, b: 2}\n", "a merge key"),
        ("? [a]\n: 1\n", "not YAML"),
    ],
)
def test_a_key_that_is_twice_in_a_yaml_mapping_is_refused(tmp_path: Path, content: str, said: str):
    with pytest.raises(RecipeError, match=rf"config\.yaml: not YAML[^\n]*{said}|config\.yaml[^\n]*{said}"):
        read_yaml(written(tmp_path / "config.yaml", content), RecipeError)


def test_cells_of_a_table_may_hold_line_ends_and_separators(tmp_path: Path):
    path = tmp_path / "a.csv"
    assert list(parse_csv('image,caption\n1.jpg,"a ""dog""\nruns, fast"\n,\n2.jpg,b\u2028c\n', path)) == [
        (1, ["image", "caption"]),
        (3, ["1.jpg", 'a "dog"\nruns, fast']),
        (5, ["2.jpg", "b\u2028c"]),
    ]
    with pytest.raises(DataError, match=r"a\.csv: not a table"):
        list(parse_csv('image,caption\n1.jpg,"never closed\n', path))


def test_a_log_loses_the_line_that_a_kill_has_cut(tmp_path: Path):
    path = tmp_path / "metrics.jsonl"
    assert read_log(path) == []
    assert read_log(written(path, '{"step": 1}\n{"step": 2}\n{"st')) == [{"step": 1}, {"step": 2}]


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


def test_json_is_bounded_in_depth_and_size(tmp_path: Path):
    path = tmp_path / "a.json"
    read_json(written(path, nested(MAX_NESTING_DEPTH)))
    for levels in (MAX_NESTING_DEPTH + 1, 900, 200_000):
        with pytest.raises(DataError, match=r"a\.json: JSON nested deeper than"):
            read_json(written(path, nested(levels)))
        with pytest.raises(DataError, match=r"a\.json, line 2: JSON nested deeper than"):
            list(read_json_lines(written(path, '{}\n{"a": ' + nested(levels) + "}\n")))
    with pytest.raises(DataError, match=r"a\.json has 1,048,579 bytes"):
        read_json_object(written(path, '"' + "x" * (1 << 20) + '"\n'))


@pytest.mark.parametrize(
    "content", ["[]", "1", "null", '"text"', "{", '{"a": ' + "9" * 5000 + "}", b"\xff\xfe{\x00}\x00"]
)
def test_what_is_no_description_is_one_sentence(tmp_path: Path, content: str | bytes):
    written(tmp_path / "config.json", content)
    with pytest.raises(CheckpointError, match=r"config\.json[^\n]*\Z"):
        read_model_config(tmp_path)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (BOMB, r"an alias \(\*a\)"),
        ("a: &a [*a]", "an alias"),
        ("a: " + nested(200_000), "deeper than"),
        ("a: " + "{b: " * 100 + "}" * 100, "deeper than"),
        ("[]", "this is a list"),
        ("", "this is nothing"),
        ("a: [", "not YAML"),
        ("a: !!python/object/apply:os.system [exit]", "not YAML"),
        ("a: 2001-99-99", "not YAML"),
        ("# " + "x" * (1 << 20), "bytes"),
    ],
    ids=lambda value: value[:30],
)
def test_yaml_is_bounded(tmp_path: Path, content: str, said: str):
    with pytest.raises(RecipeError, match=rf"config\.yaml[^\n]*{said}[^\n]*\Z"):
        read_yaml(written(tmp_path / "config.yaml", content), RecipeError)


def test_what_is_no_file_is_said_at_once(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(DataError, match=r"pipe\.json is not a regular file"):
        read_json(tmp_path / "pipe.json")
    with pytest.raises(DataError, match="is a folder"):
        read_text(tmp_path)
    with pytest.raises(DataError, match=r"nothing\.txt: No such file"):
        read_text(tmp_path / "nothing.txt")
    with pytest.raises(DataError, match="null"):
        read_text(tmp_path / "a\0b")


def test_nothing_else_reads_text_files():
    """Another reader would end lines elsewhere, keep a byte order mark, or follow a file to any depth."""
    package = Path(comodal.__file__).parent
    others = {  # our own journal, a member of a tar, a copy, source text, and /proc
        *(
            "data/regions/region_store.py",
            "data/regions/region_index.py",
            "data/shards/shard_reader.py",
            "synthetic/formats/refcoco_set.py",
            "cli/signatures.py",
        ),
        *("hardware.py", "environment.py", "text_files.py"),
    }
    names = ("json.load", "read_text(encoding", ".read_text()", "yaml.safe_load", "yaml.load", "csv.reader", "csv.Dict")
    for path in package.rglob("*.py"):
        name = path.relative_to(package).as_posix()
        if name not in others:
            assert not [found for found in names if found in path.read_text()], name
