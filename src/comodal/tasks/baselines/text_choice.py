"""Baselines of tasks that choose one of several texts by a context, such as VCR: text similarity, and three features.

text similarity                     the cosine similarity of context and choice, by TF-IDF (scikit-learn's) that is
                                    fitted on the texts of the training split
text similarity, length and names   scikit-learn's logistic regression (L2, C of 1) on this similarity, the choice's
                                    number of words, and the overlap of names: shared names of context and choice over
                                    all names in them (Jaccard index; 0 without names)

The features are centered within each question, as only differences between its choices matter. Neither sees the image.
Equal scores count as a random choice among them.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from comodal.tasks.baselines.baseline_names import TEXT_FEATURES, TEXT_SIMILARITY
from comodal.tasks.baselines.text_and_region_classifiers import MAX_ITEMS, MAX_WORDS, WORD_PATTERN


class ChoiceItem(NamedTuple):
    """A context, the texts to choose from, and the index of the correct one. Items of one group are correlated."""

    context: str
    choices: tuple[str, ...]
    label: int
    group: str


class ChoiceScores(NamedTuple):
    """The probability that each item is correct, by baseline, and what the baselines were fitted on."""

    values: dict[str, Float[np.ndarray, " items"]]
    about: str


def fit_and_score(
    training: Sequence[ChoiceItem], evaluated: Sequence[ChoiceItem], names: Collection[str], seed: int = 0
) -> ChoiceScores:
    """Fits the baselines on training items and scores evaluated ones; training items of evaluated groups are left out.

    Args:
        training: Items of the training split.
        evaluated: Items to score.
        names: The words that are names.
        seed: Seed of the choice of training items.
    """
    evaluated_groups = {item.group for item in evaluated}
    usable = [item for item in training if item.group not in evaluated_groups]
    if len(usable) > MAX_ITEMS:
        chosen = np.random.default_rng(seed).choice(len(usable), MAX_ITEMS, replace=False)
        usable = [usable[index] for index in np.sort(chosen).tolist()]
    vectorizer = TfidfVectorizer(max_features=MAX_WORDS, token_pattern=WORD_PATTERN)
    analyze = vectorizer.build_analyzer()
    if not any(analyze(text) for item in usable for text in (item.context, *item.choices)):
        return ChoiceScores({}, "not fitted: no training text has words and a group that is not evaluated")
    vectorizer.fit([text for item in usable for text in (item.context, *item.choices)])
    lowered = {name.lower() for name in names}

    def compute_features(item: ChoiceItem) -> Float[np.ndarray, "choices 3"]:
        context, choices = vectorizer.transform([item.context]), vectorizer.transform(item.choices)
        words, context_names = [analyze(choice) for choice in item.choices], lowered.intersection(analyze(item.context))
        overlaps = [compute_jaccard_index(context_names, lowered.intersection(one)) for one in words]
        lengths = [float(len(one)) for one in words]
        return np.column_stack([(choices @ context.T).toarray()[:, 0], lengths, overlaps])

    score = fit_features([compute_features(item) for item in usable], [item.label for item in usable])
    features = [compute_features(item) for item in evaluated]
    labels = [item.label for item in evaluated]
    return ChoiceScores(
        {
            TEXT_SIMILARITY: compute_hit_chances([one[:, 0] for one in features], labels),
            TEXT_FEATURES: compute_hit_chances([score(one) for one in features], labels),
        },
        f"fitted on {len(usable):,} of {len(training):,} training questions",
    )


def fit_features(
    features: Sequence[Float[np.ndarray, "choices features"]], labels: Sequence[int]
) -> Callable[[np.ndarray], np.ndarray]:
    """Scores of the choices of a question by a logistic regression on centered features."""
    inputs = np.concatenate([one - one.mean(0) for one in features])
    targets = np.concatenate([np.arange(len(one)) == label for one, label in zip(features, labels, strict=True)])
    scaler = StandardScaler().fit(inputs)
    model = LogisticRegression().fit(scaler.transform(inputs), targets)
    return lambda one: model.decision_function(scaler.transform(one - one.mean(0)))


def compute_jaccard_index(first: set[str], second: set[str]) -> float:
    """Common elements over all elements of two sets; 0 if both are empty."""
    return len(first & second) / max(len(first | second), 1)


def compute_hit_chances(scores: Sequence[np.ndarray], labels: Sequence[int]) -> Float[np.ndarray, " items"]:
    """The probability that a random choice among the best scores is the correct one."""
    is_best = [np.isclose(one, one.max(), rtol=0, atol=1e-9) for one in scores]
    return np.array([float(best[label]) / best.sum() for best, label in zip(is_best, labels, strict=True)])
