"""WordPiece tokenization as in BERT, with [CLS] and [SEP] around the text (ViLBERT, section 3.1).

Any BERT vocabulary is supported: a vocab.txt, a tokenizer.json, or a folder that holds one of them. The `tokenizers`
library does the tokenization by BERT's rules. Control characters are dropped, Chinese characters and punctuation are
split. Unless the vocabulary is cased, letters are lower-cased and accents stripped. Then the longest tokens are matched
from the left.
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
VOCABULARY_FILES = ("tokenizer.json", "vocab.txt")  # the first also has the settings for case and accents
WHITESPACE_CHARACTERS = " \t"  # other white space, such as U+2028, can be a token
MAX_VOCABULARY_BYTES = 64 << 20  # of a vocabulary; those of 250,000 tokens have 17 MB
MAX_WORD_CHARACTERS = 100  # characters; BERT's WordPiece maps longer words to [UNK]
CHARACTERS_AT_FIRST, MAX_CHARACTERS = (
    1 << 14,
    1 << 20,
)  # of a text that are tokenized; the first is usually enough
DEFAULT_MAX_TOKENS = 36  # the original's --max_seq_length for captions (train_concap.py)


class EncodedTexts(NamedTuple):
    """The token ids of many texts, concatenated."""

    token_ids: Int32[np.ndarray, "tokens"]
    lengths: Int32[np.ndarray, "texts"]
    num_truncated: int  # texts that were truncated


class WordPieceTokenizer:
    """A WordPiece vocabulary and the tokenizer for it.

    Args:
        vocabulary: The tokens in the order of their ids; it must contain the five special tokens.
        lower_case: Lower-case the text and strip accents, as BERT's uncased vocabularies need.
        strip_accents: Strip accents; by default as `lower_case`.
        tokenize_chinese_chars: Treat each Chinese character as a word.
        prefix: The prefix of tokens that continue a word.
        added_tokens: Tokens that are matched before a text is split, in addition to the special tokens.

    Raises:
        DataError: A special token is missing, or a token is duplicated.
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        lower_case: bool = True,
        strip_accents: bool | None = None,
        tokenize_chinese_chars: bool = True,
        prefix: str = "##",
        added_tokens: Sequence[str] = (),
    ) -> None:
        token_to_id = {token: token_id for token_id, token in enumerate(vocabulary)}
        missing = [token for token in SPECIAL_TOKENS if token not in token_to_id]
        if missing:
            raise DataError(
                f"a BERT vocabulary has {', '.join(SPECIAL_TOKENS)}, and this one of {len(token_to_id)} tokens lacks "
                f"{', '.join(missing)}: give the vocab.txt or tokenizer.json of a BERT"
            )
        if len(token_to_id) < len(vocabulary):
            duplicate = next(token for token, times in Counter(vocabulary).items() if times > 1)
            raise DataError(f"{duplicate!r} is in the vocabulary twice, so its id is ambiguous")
        self.vocabulary = tuple(vocabulary)
        self.padding_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id = (
            token_to_id[token] for token in SPECIAL_TOKENS
        )
        self.tokenizer = Tokenizer(WordPiece(token_to_id, unk_token="[UNK]", continuing_subword_prefix=prefix))
        self.tokenizer.normalizer = BertNormalizer(
            handle_chinese_chars=tokenize_chinese_chars, strip_accents=strip_accents, lowercase=lower_case
        )
        self.tokenizer.pre_tokenizer = BertPreTokenizer()
        self.tokenizer.post_processor = BertProcessing(("[SEP]", self.sep_id), ("[CLS]", self.cls_id))
        self.tokenizer.decoder = WordPieceDecoder(prefix=prefix)
        self.tokenizer.add_special_tokens(
            [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS]
        )
        self.tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added_tokens])

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
                f"{file} (or the tokenizer_config.json next to it) is damaged, or not a BERT's: {error!r}"
            ) from error

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> "WordPieceTokenizer":
        """Build a vocabulary from texts, where no BERT vocabulary is available: every word, and every character as
        fallback.

        Words of more than MAX_WORD_CHARACTERS characters, which are encoded as [UNK], are left out. As in `encode`, the
        rest of a very long text is not read.
        """
        counts = Counter[str]()
        normalizer, pre_tokenizer = BertNormalizer(lowercase=True), BertPreTokenizer()
        for text in texts:
            words_of_text = pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(_cut_text(text, MAX_CHARACTERS)))
            counts.update(word for word, _ in words_of_text if len(word) <= MAX_WORD_CHARACTERS)
        characters = sorted(set("".join(counts)))
        words = sorted(set(counts) - set(characters), key=lambda word: (-counts[word], word))
        return cls([*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters), *words])

    @property
    def size(self) -> int:
        """Number of tokens in the vocabulary."""
        return len(self.vocabulary)

    @property
    def special_ids(self) -> Int64[np.ndarray, "5"]:
        """The token ids of [PAD], [UNK], [CLS], [SEP] and [MASK]."""
        return np.array([self.padding_id, self.unknown_id, self.cls_id, self.sep_id, self.mask_id])

    @property
    def ordinary_ids(self) -> Int64[np.ndarray, "tokens"]:
        """The ids of all tokens that can occur in a text: neither special nor unused."""
        is_excluded = (
            token in SPECIAL_TOKENS or UNUSED_TOKEN_PATTERN.fullmatch(token) is not None for token in self.vocabulary
        )
        return np.flatnonzero(~np.fromiter(is_excluded, bool, self.size))

    def encode(self, text: str, max_tokens: int = DEFAULT_MAX_TOKENS) -> list[int]:
        """Token ids of [CLS], the text, [SEP]: at most `max_tokens` ids, truncated before [SEP].

        Half a surrogate pair, as in broken JSON, is read as a question mark.
        """
        _check_max_tokens(max_tokens)
        return [self.cls_id, *self._tokenize(text, max_tokens - 2)[: max_tokens - 2], self.sep_id]

    def encode_all(self, texts: Iterable[str], max_tokens: int = DEFAULT_MAX_TOKENS) -> EncodedTexts:
        """`encode` for each text, in flat arrays: 80,000 captions a second."""
        _check_max_tokens(max_tokens)
        token_ids, lengths, truncated = array("i"), array("i"), 0
        for text in texts:
            encoded = self.encode(text, max_tokens + 1)
            if len(encoded) > max_tokens:
                encoded[max_tokens - 1 :] = [self.sep_id]
                truncated += 1
            token_ids.extend(encoded)
            lengths.append(len(encoded))
        return EncodedTexts(np.asarray(token_ids, np.int32), np.asarray(lengths, np.int32), truncated)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of token ids, without [PAD], [CLS] and [SEP]; [MASK] and [UNK] are kept."""
        special_ids = {self.padding_id, self.cls_id, self.sep_id}
        shown_ids = [int(token_id) for token_id in token_ids if int(token_id) not in special_ids]
        return self.tokenizer.decode(shown_ids, skip_special_tokens=False)

    def save(self, folder: Path) -> None:
        """Write tokenizer.json into a folder; `transformers` can load it."""
        write_bytes_atomically(folder / VOCABULARY_FILES[0], self.to_json())

    def to_json(self) -> bytes:
        """The content of tokenizer.json."""
        return self.tokenizer.to_str(pretty=True).encode()

    def _tokenize(self, text: str, min_tokens: int) -> list[int]:
        """At least `min_tokens` token ids of a text, if it has that many; the rest of a long text is not tokenized.

        A word of more than MAX_WORD_CHARACTERS characters is one token, so a cut within a word changes no earlier
        token.
        """
        token_ids: list[int] = []
        for max_characters in (CHARACTERS_AT_FIRST, MAX_CHARACTERS):
            token_ids = self.tokenizer.encode(_cut_text(text, max_characters), add_special_tokens=False).ids
            if len(text) <= max_characters or len(token_ids) >= min_tokens + MAX_WORD_CHARACTERS:
                break
        return token_ids


def _cut_text(text: str, max_characters: int) -> str:
    """The beginning of a text, with a question mark for half a surrogate pair, as in broken JSON."""
    return text[:max_characters] if text.isascii() else text[:max_characters].encode("utf-8", "replace").decode()


def _check_max_tokens(max_tokens: int) -> None:
    if max_tokens < 2:
        raise ValueError(f"max_tokens ({max_tokens}) must leave room for [CLS] and [SEP]")


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
    """A vocab.txt: one token a line. The tokenizer_config.json next to it, if any, sets whether it is cased."""
    while lines and not lines[-1].strip(WHITESPACE_CHARACTERS):
        lines.pop()
    empty_line = next(
        (line_number for line_number, line in enumerate(lines, start=1) if not line.strip(WHITESPACE_CHARACTERS)), None
    )
    if empty_line:
        raise DataError(f"line {empty_line} of {len(lines)} is empty; the file is damaged or not a vocabulary")
    config_path = folder / "tokenizer_config.json"
    config = read_json_object(config_path) if config_path.is_file() else {}
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
        raise DataError(f"unsupported tokenizer: {kinds[0]}, {kinds[1]}; only BERT's WordPiece is supported")
    added = {added_token["content"]: added_token["id"] for added_token in content.get("added_tokens", [])}
    token_to_id = added | model["vocab"]
    if sorted(token_to_id.values()) != list(range(len(token_to_id))):
        raise DataError(f"its {len(token_to_id)} tokens do not have the ids 0 to {len(token_to_id) - 1}")
    return WordPieceTokenizer(
        sorted(token_to_id, key=lambda token: token_to_id[token]),
        normalizer["lowercase"],
        normalizer["strip_accents"],
        normalizer["handle_chinese_chars"],
        model["continuing_subword_prefix"],
        [token for token in added if token not in SPECIAL_TOKENS],
    )
