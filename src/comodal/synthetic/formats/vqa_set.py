"""Questions about images in the file format of VQA v2 (Goyal et al. 2017): questions, and ten answers to each.

v2_OpenEnded_mscoco_{train2014,val2014,test2015,test-dev2015}_questions.json
v2_mscoco_{train2014,val2014}_annotations.json     test annotations are not written, as in VQA v2

Ten simulated annotators answer. Some answers are wrong, with a lower confidence ("maybe" or "no").
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from comodal.files import write_bytes_atomically
from comodal.synthetic.formats.answer_balance import AnswerBalancer, ImageStatement
from comodal.synthetic.formats.questions import QUESTION_TYPES, classify_answers, generate_questions
from comodal.synthetic.scenes.media_writers import encode_json
from comodal.synthetic.scenes.object_scenes import SceneImage
from comodal.synthetic.scenes.world import RandomStream

NUM_ANNOTATORS = 10
MISTAKE_FRACTION = 0.06
MAX_MISTAKES = 3  # so that the correct answer stays the most common one and is needed for full accuracy
CORRECT_CONFIDENCES, MISTAKE_CONFIDENCES = (0.85, 0.13, 0.02), (0.3, 0.5, 0.2)  # probabilities of yes, maybe, no
VQA_FILE_INFO = {
    "info": {"description": "Questions about comodal's synthetic images in the format of VQA v2.0.", "version": "2.0"},
    "license": {"url": "", "name": ""},
    "data_type": "mscoco",
}


def write_vqa(folder: Path, parts: dict[str, list[tuple[int, SceneImage]]]) -> int:
    """The files of all splits, each of image ids and images; returns the number of questions."""
    total = 0
    for split, images_with_ids in parts.items():
        questions, annotations = build_vqa_questions(images_with_ids)
        total += len(questions)
        task = {**VQA_FILE_INFO, "task_type": "Open-Ended", "data_subtype": split, "questions": questions}
        write_bytes_atomically(folder / f"v2_OpenEnded_mscoco_{split}_questions.json", encode_json(task))
        if split == "test2015":
            test_dev_file = {**task, "data_subtype": "test-dev2015", "questions": questions[::2]}
            write_bytes_atomically(
                folder / "v2_OpenEnded_mscoco_test-dev2015_questions.json", encode_json(test_dev_file)
            )
        else:
            annotation_file = {**VQA_FILE_INFO, "data_subtype": split, "annotations": annotations}
            write_bytes_atomically(folder / f"v2_mscoco_{split}_annotations.json", encode_json(annotation_file))
    return total


def build_vqa_questions(
    images_with_ids: Sequence[tuple[int, SceneImage]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Questions and annotations of one split; each split is balanced separately."""
    questions, annotations = [], []
    balance = AnswerBalancer()
    for image_id, scene_image in images_with_ids:
        rng = scene_image.world.make_generator(RandomStream.QUESTIONS)
        for question_index, claim in enumerate(generate_questions(scene_image.objects, balance, rng)):
            question_id = image_id * 1000 + question_index
            questions.append({"image_id": image_id, "question": claim.text, "question_id": question_id})
            annotations.append(
                {
                    "question_type": QUESTION_TYPES[claim.form],
                    "multiple_choice_answer": claim.answer,
                    "answers": simulate_answers(claim, rng),
                    "image_id": image_id,
                    "answer_type": classify_answers(claim.answers),
                    "question_id": question_id,
                }
            )
    return questions, annotations


def simulate_answers(claim: ImageStatement, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The answers of ten simulated annotators."""
    mistaken = set(np.flatnonzero(rng.random(NUM_ANNOTATORS) < MISTAKE_FRACTION)[:MAX_MISTAKES].tolist())
    incorrect_answers = [answer for answer in claim.answers if answer != claim.answer]
    answers = []
    for annotator in range(NUM_ANNOTATORS):
        answer = str(rng.choice(incorrect_answers)) if annotator in mistaken else claim.answer
        confidence = str(
            rng.choice(("yes", "maybe", "no"), p=MISTAKE_CONFIDENCES if annotator in mistaken else CORRECT_CONFIDENCES)
        )
        answers.append({"answer": answer, "answer_confidence": confidence, "answer_id": annotator + 1})
    return answers
