"""Balances answers, so that a text-only model cannot predict them.

The text of a question reveals its form: the positions and sizes it mentions, and which of its words are equal. This is
its cue. Kinds, colors and materials are interchangeable in crowds, so apart from its cue a question reveals nothing of
its answer. It is sufficient that each cue has each of its answers equally often.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MAX_ANSWER_LEAD = 2  # maximum lead of an answer over the rarest one of its cue


class ImageStatement(NamedTuple):
    """A question or statement about an image, with its answer.

    Attributes:
        form: the kind of sentence.
        text: its words.
        answer: the correct answer for this image.
        cue: all that the text reveals.
        answers: the possible answers for other images, including the answer.
    """

    form: str
    text: str
    answer: str
    cue: str
    answers: tuple[str, ...]


class AnswerBalancer:
    """Selects statements so that the answers of each cue stay equally frequent."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, str, str]] = Counter()

    def select_statement(self, claims: Sequence[ImageStatement], rng: np.random.Generator) -> ImageStatement | None:
        """A random statement among those with the rarest answer; None if all would exceed the balance limit."""
        leads = [self._compute_lead(claim) for claim in claims]
        min_lead = min(leads, default=MAX_ANSWER_LEAD)
        if min_lead >= MAX_ANSWER_LEAD:
            return None
        rarest_statements = [claim for claim, lead in zip(claims, leads, strict=True) if lead == min_lead]
        selected = rarest_statements[int(rng.integers(len(rarest_statements)))]
        self.counts[selected.form, selected.cue, selected.answer] += 1
        return selected

    def _compute_lead(self, claim: ImageStatement) -> int:
        """The lead of the statement's answer over the rarest answer of its cue."""
        rarest = min(self.counts[claim.form, claim.cue, answer] for answer in claim.answers)
        return self.counts[claim.form, claim.cue, claim.answer] - rarest
