"""Questions about pictures as the files of VQA v2 (Goyal et al. 2017): questions, and ten answers to each.

v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json
v2_mscoco_{train2014,val2014}_annotations.json     nobody has those of the test, whose answers go to a server

Ten annotators answer; now and then one is mistaken, and says "maybe" or "no" when asked whether they are sure.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comodal.files import write_whole
from comodal.synthetic.formats.answer_balance import AnswerBalancer, ImageStatement
from comodal.synthetic.formats.questions import TYPES, answer_type, ask
from comodal.synthetic.scenes.media_writers import json_text
from comodal.synthetic.scenes.object_scenes import SceneImage
from comodal.synthetic.scenes.world import RandomStream

ANNOTATORS = 10
MISTAKEN = 0.06
MOST_MISTAKEN = 3  # so that the right answer stays the most common one, and full marks need it
SURE, UNSURE = (0.85, 0.13, 0.02), (0.3, 0.5, 0.2)  # chances of yes, maybe, no
ABOUT = {
    "info": {"description": "Questions about comodal's playground in the format of VQA v2.0.", "version": "2.0"},
    "license": {"url": "", "name": ""},
    "data_type": "mscoco",
}


def write_vqa(folder: Path, parts: dict[str, list[tuple[int, SceneImage]]]) -> int:
    """The files of all splits, each of image ids and pictures; returns how many questions there are."""
    total = 0
    for split, numbered in parts.items():
        questions, annotations = questions_about(numbered)
        total += len(questions)
        task = {**ABOUT, "task_type": "Open-Ended", "data_subtype": split, "questions": questions}
        write_whole(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", json_text(task))
        if split == "test2015":
            halves = {**task, "data_subtype": "test-dev2015", "questions": questions[::2]}
            write_whole(folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", json_text(halves))
        else:
            answered = {**ABOUT, "data_subtype": split, "annotations": annotations}
            write_whole(folder / f"v2_mscoco_{split}_annotations.json", json_text(answered))
    return total


def questions_about(numbered: Sequence[tuple[int, SceneImage]]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Questions and annotations of one split; each split is balanced for itself."""
    questions, annotations = [], []
    balance = AnswerBalancer()
    for image_id, picture in numbered:
        rng = picture.world.generator(RandomStream.QUESTIONS)
        for number, claim in enumerate(ask(picture.things, balance, rng)):
            question_id = image_id * 1000 + number
            questions.append({"image_id": image_id, "question": claim.text, "question_id": question_id})
            annotations.append(
                {
                    "question_type": TYPES[claim.form],
                    "multiple_choice_answer": claim.answer,
                    "answers": answers_to(claim, rng),
                    "image_id": image_id,
                    "answer_type": answer_type(claim.answers),
                    "question_id": question_id,
                }
            )
    return questions, annotations


def answers_to(claim: ImageStatement, rng: np.random.Generator) -> list[dict[str, Any]]:
    """What ten people say."""
    mistaken = set(np.flatnonzero(rng.random(ANNOTATORS) < MISTAKEN)[:MOST_MISTAKEN].tolist())
    others = [answer for answer in claim.answers if answer != claim.answer]
    answers = []
    for number in range(ANNOTATORS):
        answer = str(rng.choice(others)) if number in mistaken else claim.answer
        sure = str(rng.choice(("yes", "maybe", "no"), p=UNSURE if number in mistaken else SURE))
        answers.append({"answer": answer, "answer_confidence": sure, "answer_id": number + 1})
    return answers
