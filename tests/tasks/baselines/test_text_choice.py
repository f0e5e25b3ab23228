"""The baselines that choose a text: what words, length and names decide, and similarities of scikit-learn's own."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics.pairwise import cosine_similarity

from comodal.tasks.baselines.text_choice import ChoiceItem, compute_hit_chances, fit_and_score

NAMES = ("Ann", "Bob", "Cy", "Dee")


def by_word(index: int) -> ChoiceItem:
    """The correct choice repeats the thing of the question."""
    things = [f"thing{(index + place) % 8}" for place in range(4)]
    return ChoiceItem(f"where is {things[index % 4]}", tuple(f"near a {one}" for one in things), index % 4, str(index))


def by_length(index: int) -> ChoiceItem:
    """The correct choice is the longest; no choice has a word of the question."""
    choices = tuple("so it seems to be" if place == index % 4 else "so it seems" for place in range(4))
    return ChoiceItem("why", choices, index % 4, str(index))


def by_name(index: int) -> ChoiceItem:
    """The correct choice is the only one with no name of the question: TF-IDF alone prefers the wrong ones."""
    name, other = NAMES[index % 4], NAMES[(index + 1) % 4]
    choices = tuple(f"{other if place == index % 4 else name} waits" for place in range(4))
    return ChoiceItem(f"what does {name} do", choices, index % 4, str(index))


@pytest.mark.parametrize(
    ("ask", "similarity", "features"), [(by_word, 1.0, 1.0), (by_length, 1 / 4, 1.0), (by_name, 0.0, 1.0)]
)
def test_words_length_or_names_decide(ask: Callable[[int], ChoiceItem], similarity: float, features: float):
    found = fit_and_score([ask(index) for index in range(60)], [ask(index) for index in range(60, 80)], NAMES).values
    assert found["text_similarity"].mean() == similarity  # equal choices count as one of four
    assert found["text_features"].mean() == features


def test_similarities_are_scikit_learns():
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(9)]

    def draw(group: int) -> ChoiceItem:
        texts = [" ".join(rng.choice(words, 5)) for _ in range(5)]
        return ChoiceItem(texts[0], tuple(texts[1:]), int(rng.integers(4)), str(group))

    training, evaluated = [draw(n) for n in range(30)], [draw(n) for n in range(30, 60)]
    plain = TfidfVectorizer().fit([text for one in training for text in (one.context, *one.choices)])
    best = [
        cosine_similarity(plain.transform([one.context]), plain.transform(one.choices))[0].argmax() for one in evaluated
    ]
    is_correct = [place == one.label for place, one in zip(best, evaluated, strict=True)]
    assert fit_and_score(training, evaluated, ()).values["text_similarity"].tolist() == is_correct


def test_equal_scores_worked_by_hand():
    scores = [np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 2.0, 0.0, 2.0]), np.zeros(4)]
    assert compute_hit_chances(scores, [3, 0, 2]).tolist() == [1 / 3, 0.0, 1 / 4]


def test_nothing_to_fit_on_is_said():
    items = [by_word(index) for index in range(4)]
    found = fit_and_score(items, items, NAMES)
    assert found.values == {} and found.about.startswith("not fitted: no training text")
