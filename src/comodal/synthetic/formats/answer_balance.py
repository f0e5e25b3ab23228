"""Answers in equal numbers, so that who does not look at the picture cannot guess them.

The words of a question give away its form: which places and sizes it names, and which of its words are equal. That is
its cue. Kinds, colours and materials are interchangeable in crowds, so beyond its cue a question tells nothing of its
answer; it is enough that each cue has each of its answers equally often.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_ANSWER_LEAD = 2  # how far an answer may run ahead of the rarest one of its cue


class ImageStatement(NamedTuple):
    """A sentence that may be asked or said about a picture, with its answer.

    Attributes:
        form: the kind of sentence.
        text: its words.
        answer: what is right for this picture.
        cue: all that the words give away.
        answers: what could be right for other pictures, among them the answer.
    """

    form: str
    text: str
    answer: str
    cue: str
    answers: tuple[str, ...]


class AnswerBalancer:
    """Takes claims so that the answers of each cue stay equally frequent."""

    def __init__(self) -> None:
        self.taken: Counter[tuple[str, str, str]] = Counter()

    def choose(self, claims: Sequence[ImageStatement], rng: np.random.Generator) -> ImageStatement | None:
        """One of the claims whose answer is the most wanted, by chance; None when all would tip the balance."""
        ahead = [self._ahead(claim) for claim in claims]
        least = min(ahead, default=MAX_ANSWER_LEAD)
        if least >= MAX_ANSWER_LEAD:
            return None
        wanted = [claim for claim, lead in zip(claims, ahead, strict=True) if lead == least]
        chosen = wanted[int(rng.integers(len(wanted)))]
        self.taken[chosen.form, chosen.cue, chosen.answer] += 1
        return chosen

    def _ahead(self, claim: ImageStatement) -> int:
        """By how much the claim's answer leads the rarest answer of its cue."""
        rarest = min(self.taken[claim.form, claim.cue, answer] for answer in claim.answers)
        return self.taken[claim.form, claim.cue, claim.answer] - rarest
