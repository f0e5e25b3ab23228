"""VQA's official accuracy and answer normalization (GT-Vision-Lab/VQA, vqaEval.py; Antol et al., ICCV 2015).

Each question has ten human answers. The accuracy of a predicted answer is the mean, over the ten subsets of nine human
answers, of min(1, matching answers / 3). Where the ten differ, answers are first normalized: punctuation removed, lower
case, digits for numbers, no articles, apostrophes in contractions. The quirks of the official code are kept for
comparable scores.
"""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
DIGITS_AND_COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")  # the official look-behind has a typo and excludes nothing
MAX_PERIODS = 32  # the official code passes re.UNICODE (32) as the count
NUMBER_DIGITS = dict(
    zip(("none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
        ("0", *map(str, range(11))), strict=True)
)  # fmt: skip
ARTICLES = {"a", "an", "the"}
MIN_AGREEING_ANSWERS = 3

ONE_APOSTROPHE_WORDS = """
ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's
isn't it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've
shouldn't somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd
there're there's they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've
when's where'd where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all
you'd you'll you're you've
""".split()  # noqa: SIM905
TWO_APOSTROPHE_WORDS = """
couldn't've hadn't've he'd've it'd've mightn't've 'ow's'at she'd've shouldn't've somebody'd've someone'd've
something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll y'all'd've you'd've
""".split()  # noqa: SIM905


def list_apostrophe_variants(word: str) -> list[str]:
    """The variants of a word without one of its apostrophes."""
    return [word[:index] + word[index + 1 :] for index, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {
    wrong: word for word in (*ONE_APOSTROPHE_WORDS, *TWO_APOSTROPHE_WORDS) for wrong in list_apostrophe_variants(word)
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # reversed, as in the official table


def strip_punctuation(answer: str) -> str:
    """Removes a sign that is next to a space, or any sign if a comma is between digits; else replaces it by a space."""
    thousands = DIGITS_AND_COMMA.search(answer) is not None
    stripped = answer
    for sign in PUNCTUATION:
        gone = sign + " " in answer or " " + sign in answer or thousands
        stripped = stripped.replace(sign, "" if gone else " ")
    return PERIOD.sub("", stripped, count=MAX_PERIODS)


def normalize_words(answer: str) -> str:
    """Lower case, digits for numbers, no articles, apostrophes in contractions."""
    words = [NUMBER_DIGITS.get(word, word) for word in answer.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize_answer(answer: str) -> str:
    """An answer after the official normalization."""
    return normalize_words(strip_punctuation(strip_line_breaks(answer)))


def compute_vqa_accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """The official accuracy of one answer.

    Args:
        answer: The predicted answer.
        human_answers: The human answers, as in the annotations.
    """
    cleaned = [strip_line_breaks(text) for text in (answer, *human_answers)]
    if len(set(cleaned[1:])) > 1:
        cleaned = [normalize_answer(text) for text in cleaned]
    prediction, references = cleaned[0], cleaned[1:]
    agreeing = references.count(prediction)
    agreement_scores = [
        min(1.0, (agreeing - (reference == prediction)) / MIN_AGREEING_ANSWERS) for reference in references
    ]
    return sum(agreement_scores) / len(agreement_scores)


def strip_line_breaks(answer: str) -> str:
    """Replaces line breaks and tabs by spaces."""
    return answer.replace("\n", " ").replace("\t", " ").strip()
