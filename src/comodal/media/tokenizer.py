"""WordPiece tokenization as in BERT, with [CLS] and [SEP] around the text (ViLBERT, section 3.1).

Any BERT vocabulary is supported: a vocab.txt, a tokenizer.json, or a folder that holds one of them. The `tokenizers`
library does the tokenization with BERT's rules: control characters are dropped, Chinese characters are split, letters
are lower-cased and accents stripped unless the vocabulary is cased, punctuation is split, then the longest tokens are
matched from the left.
"""

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32, Int64
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import WordPiece as WordPieceDecoder
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import BertProcessing

from comodal.errors import DataError
from comodal.files import write_bytes_atomically
from comodal.text_files import read_json_object, read_lines

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
UNUSED_TOKEN_PATTERN = re.compile(r"\[unused\d+\]")  # entries that BERT's vocabularies reserve
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")  # the first also says how case and accents are treated
BLANK_CHARACTERS = " \t"  # other white space, such as U+2028, can be a token
MAX_VOCABULARY_BYTES = 64 << 20  # of a vocabulary; those of 250,000 tokens have 17 MB
MAX_WORD_CHARACTERS = 100  # characters; BERT's WordPiece maps longer words to [UNK]
CHARACTERS_AT_FIRST, MAX_CHARACTERS = (
    1 << 14,
    1 << 20,
)  # of a text that are tokenized; the first is usually enough
DEFAULT_MAX_TOKENS = 36  # the original's --max_seq_length for captions (train_concap.py)


class EncodedTexts(NamedTuple):
    """The token ids of many texts, concatenated."""

    words: Int32[np.ndarray, "pieces"]
    lengths: Int32[np.ndarray, "texts"]
    truncated: int  # texts that were truncated


class WordPieceTokenizer:
    """A WordPiece vocabulary and the tokenizer for it.

    Args:
        vocabulary: The tokens in the order of their ids; it must contain the five special tokens.
        lower_case: Lower-case the text and strip accents, as BERT's uncased vocabularies need.
        strip_accents: Strip accents; by default as `lower_case`.
        apart_chinese: Treat each Chinese character as a word.
        prefix: The prefix of tokens that continue a word.
        whole: Tokens that are matched in a text before it is split, besides the special tokens.

    Raises:
        DataError: A special token is missing, or a token is duplicated.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        lower_case: bool = True,
        strip_accents: bool | None = None,
        apart_chinese: bool = True,
        prefix: str = "##",
        whole: Sequence[str] = (),
    ) -> None:
        numbers = {piece: number for number, piece in enumerate(vocabulary)}
        missing = [piece for piece in SPECIAL_TOKENS if piece not in numbers]
        if missing:
            raise DataError(
                f"a BERT vocabulary has {', '.join(SPECIAL_TOKENS)}, and this one of {len(numbers)} pieces lacks "
                f"{', '.join(missing)}: give the vocab.txt or tokenizer.json of a BERT"
            )
        if len(numbers) < len(vocabulary):
            twice = next(piece for piece, times in Counter(vocabulary).items() if times > 1)
            raise DataError(f"{twice!r} is there twice, so that the numbers of the pieces are not known")
        self.vocabulary = tuple(vocabulary)
        self.padding, self.unknown, self.start, self.end, self.mask = (numbers[piece] for piece in SPECIAL_TOKENS)
        self.tokenizer = Tokenizer(WordPiece(numbers, unk_token="[UNK]", continuing_subword_prefix=prefix))
        self.tokenizer.normalizer = BertNormalizer(
            handle_chinese_chars=apart_chinese, strip_accents=strip_accents, lowercase=lower_case
        )
        self.tokenizer.pre_tokenizer = BertPreTokenizer()
        self.tokenizer.post_processor = BertProcessing(("[SEP]", self.end), ("[CLS]", self.start))
        self.tokenizer.decoder = WordPieceDecoder(prefix=prefix)
        self.tokenizer.add_special_tokens(
            [AddedToken(piece, special=True, normalized=False) for piece in SPECIAL_TOKENS]
        )
        self.tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in whole])

    @classmethod
    def read(cls, path: Path) -> "WordPieceTokenizer":
        """Read a vocab.txt, a tokenizer.json, or the folder of a BERT model or a run that holds one.

        Raises:
            DataError: There is no vocabulary, or it is damaged or not a BERT vocabulary.
        """
        file = _find_vocabulary_file(path)
        is_json = file.suffix == ".json"
        content = read_json_object(file, max_bytes=MAX_VOCABULARY_BYTES) if is_json else {}
        lines = [] if is_json else read_lines(file, max_bytes=MAX_VOCABULARY_BYTES)
        try:
            return _load_tokenizer_json(content) if is_json else _load_vocab_txt(lines, file.parent)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(
                f"{file} (or the tokenizer_config.json beside it) is damaged, or not of a BERT: {error!r}"
            ) from error

    @classmethod
    def of_texts(cls, texts: Iterable[str]) -> "WordPieceTokenizer":
        """Build a vocabulary from texts, where no BERT vocabulary is available: every word, and every character as
        fallback.

        Words of more than MAX_WORD_CHARACTERS characters, which are encoded as [UNK], are left out. As in `encode`, the
        rest of a very long text is not read.
        """
        counts = Counter[str]()
        normalise, cut = BertNormalizer(lowercase=True), BertPreTokenizer()
        for text in texts:
            words_of_text = cut.pre_tokenize_str(normalise.normalize_str(_cut_text(text, MAX_CHARACTERS)))
            counts.update(word for word, _ in words_of_text if len(word) <= MAX_WORD_CHARACTERS)
        signs = sorted(set("".join(counts)))
        words = sorted(set(counts) - set(signs), key=lambda word: (-counts[word], word))
        return cls([*SPECIAL_TOKENS, *signs, *(f"##{sign}" for sign in signs), *words])

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def special(self) -> Int64[np.ndarray, "5"]:
        """The token ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return np.array([self.padding, self.unknown, self.start, self.end, self.mask])

    @property
    def ordinary(self) -> Int64[np.ndarray, "pieces"]:
        """The ids of all tokens that can occur in a text: neither special nor unused."""
        taken = (
            piece in SPECIAL_TOKENS or UNUSED_TOKEN_PATTERN.fullmatch(piece) is not None for piece in self.vocabulary
        )
        return np.flatnonzero(~np.fromiter(taken, bool, self.size))

    def encode(self, text: str, max_words: int = DEFAULT_MAX_TOKENS) -> list[int]:
        """Token ids of [CLS], the text, [SEP]: at most `max_words` ids, truncated before [SEP].

        Half a surrogate pair, as in broken JSON, is read as a question mark.
        """
        _check_max_tokens(max_words)
        return [self.start, *self._pieces(text, max_words - 2)[: max_words - 2], self.end]

    def encode_all(self, texts: Iterable[str], max_words: int = DEFAULT_MAX_TOKENS) -> EncodedTexts:
        """`encode` for each text, in flat arrays: 80,000 captions a second."""
        _check_max_tokens(max_words)
        words, lengths, truncated = array("i"), array("i"), 0
        for text in texts:
            encoded = self.encode(text, max_words + 1)
            if len(encoded) > max_words:
                encoded[max_words - 1 :] = [self.end]
                truncated += 1
            words.extend(encoded)
            lengths.append(len(encoded))
        return EncodedTexts(np.asarray(words, np.int32), np.asarray(lengths, np.int32), truncated)

    def decode(self, words: Sequence[int]) -> str:
        """The text of token ids, without [PAD], [CLS] and [SEP]; [MASK] and [UNK] are kept."""
        frame = {self.padding, self.start, self.end}
        shown = [int(word) for word in words if int(word) not in frame]
        return self.tokenizer.decode(shown, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder; `transformers` can load it."""
        write_bytes_atomically(folder / VOCABULARY_FILES[0], self.as_json())

    def as_json(self) -> bytes:
        """The content of tokenizer.json."""
        return self.tokenizer.to_str(pretty=True).encode()

    def _pieces(self, text: str, needed: int) -> list[int]:
        """At least `needed` token ids of a text, if it has that many; the rest of a long text is not tokenized.

        A word of more than MAX_WORD_CHARACTERS characters is one token, so a cut within a word changes no earlier
        token.
        """
        pieces: list[int] = []
        for most in (CHARACTERS_AT_FIRST, MAX_CHARACTERS):
            pieces = self.tokenizer.encode(_cut_text(text, most), add_special_tokens=False).ids
            if len(text) <= most or len(pieces) >= needed + MAX_WORD_CHARACTERS:
                break
        return pieces


def _cut_text(text: str, most: int) -> str:
    """The beginning of a text, with a question mark for half a surrogate pair, as in broken JSON."""
    return text[:most] if text.isascii() else text[:most].encode("utf-8", "replace").decode()


def _check_max_tokens(max_words: int) -> None:
    if max_words < 2:
        raise ValueError(f"max_words ({max_words}) must leave room for [CLS] and [SEP]")


def _find_vocabulary_file(path: Path) -> Path:
    """The file that holds the vocabulary; in a run it is next to the model."""
    if not path.exists():
        raise DataError(f"{path}: there is no such vocabulary; give a vocab.txt, a tokenizer.json or a BERT's folder")
    if path.is_file():
        return path
    for folder in (path, path / "model"):
        for name in VOCABULARY_FILES:
            if (folder / name).is_file():
                return folder / name
    raise DataError(f"{path} holds no vocabulary: neither {' nor '.join(VOCABULARY_FILES)}")


def _load_vocab_txt(lines: list[str], folder: Path) -> WordPieceTokenizer:
    """A vocab.txt: one token a line. The tokenizer_config.json next to it, if any, says whether it is cased."""
    while lines and not lines[-1].strip(BLANK_CHARACTERS):
        lines.pop()
    blank = next((number for number, line in enumerate(lines, start=1) if not line.strip(BLANK_CHARACTERS)), None)
    if blank:
        raise DataError(f"line {blank} of {len(lines)} is empty, so the file is damaged or no vocabulary")
    beside = folder / "tokenizer_config.json"
    config = read_json_object(beside) if beside.is_file() else {}
    return WordPieceTokenizer(
        lines,
        config.get("do_lower_case", True),
        config.get("strip_accents"),
        config.get("tokenize_chinese_chars", True),
    )


def _load_tokenizer_json(content: dict[str, Any]) -> WordPieceTokenizer:
    """A tokenizer.json: its vocabulary and its case handling; its length limits are ignored."""
    model, normalizer = content["model"], content["normalizer"] or {}
    kinds = (model.get("type"), normalizer.get("type"))
    if kinds != ("WordPiece", "BertNormalizer"):
        raise DataError(f"the vocabulary is of the kind {kinds[0]}, {kinds[1]}; comodal reads BERT's WordPiece")
    added = {token["content"]: token["id"] for token in content.get("added_tokens", [])}
    numbers = added | model["vocab"]
    if sorted(numbers.values()) != list(range(len(numbers))):
        raise DataError(f"its {len(numbers)} pieces are not numbered from 0 to {len(numbers) - 1}")
    return WordPieceTokenizer(
        sorted(numbers, key=lambda piece: numbers[piece]),
        normalizer["lowercase"],
        normalizer["strip_accents"],
        normalizer["handle_chinese_chars"],
        model["continuing_subword_prefix"],
        [piece for piece in added if piece not in SPECIAL_TOKENS],
    )
