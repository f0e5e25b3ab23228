"""VQA v2: the official figures and files, the published vocabulary's rule, and a network that answers by looking."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from comodal.analysis.reports.report import write_report
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.tasks.vision_language.answer_files import read_answer_vocabulary
from comodal.tasks.vision_language.question_answering.vqa import (
    compute_vqa_accuracies,
    count_unreachable_questions,
    evaluate_vqa,
    recipe,
    score_vqa_answers,
)
from comodal.tasks.vision_language.question_answering.vqa_files import (
    VQAQuestion,
    build_answer_vocabulary,
    compute_soft_scores,
    read_vqa_questions,
    write_vqa_results,
)
from comodal.tasks.vision_language.question_answering.vqa_metric import (
    compute_vqa_accuracy,
    normalize_answer,
    normalize_words,
    strip_line_breaks,
    strip_punctuation,
)
from comodal.training.run import train
from tests.support.self_contained import check_page
from tests.support.small_tasks import COLOURS, QUESTION, colour_of, write_colours, write_pretrained
from tests.support.vilbert_fixtures import FIXTURES


def golden(name: str) -> dict:
    return json.loads((FIXTURES / "data" / name).read_text())


# The metric, as the official code gives it


def test_answers_are_written_as_the_official_code_writes_them():
    for raw, without, normal in golden("vqa_eval.json")["norm"]:
        plain = strip_line_breaks(raw)
        assert (strip_punctuation(plain), normalize_words(without)) == (without, normal)
        assert normalize_answer(raw) == normal


def test_accuracies_are_the_official_ones():
    expected = golden("vqa_eval.json")
    given = {entry["question_id"]: entry["answer"] for entry in expected["results"]}
    questions = [
        VQAQuestion(entry["question_id"], "1", "?", tuple(one["answer"] for one in entry["answers"]), "",
                 entry["answer_type"], entry["question_type"])
        for entry in expected["annotations"]
    ]  # fmt: skip
    for question in questions:
        share = compute_vqa_accuracy(given[question.question_id], question.answers)
        assert round(100 * share, 2) == expected["evalQA"][str(question.question_id)]
    numbers = score_vqa_answers(questions, compute_vqa_accuracies(questions, given), given)
    assert round(100 * numbers["vqa.accuracy"], 2) == expected["accuracy"]["overall"]
    for ours, theirs in (("answer_type", "perAnswerType"), ("question_type", "perQuestionType")):
        for name, value in expected["accuracy"][theirs].items():
            assert round(100 * numbers[f"vqa.{ours}.{name}"], 2) == value


def test_three_who_agree_are_enough():
    said = ["red"] * 3 + ["blue"] * 7
    # red: without one of its three two are left (2/3), without another all three (1): (3 * 2/3 + 7) / 10
    assert compute_vqa_accuracy("red", said) == pytest.approx(0.9)
    assert compute_vqa_accuracy("a red", said) == pytest.approx(0.9)  # written without its article
    assert (
        compute_vqa_accuracy("the red", ["red"] * 10) == 0.0
    )  # where all ten agree nothing is rewritten: an official quirk


def test_vocabulary_and_soft_scores_are_those_of_the_code_that_vilbert_took_over():
    expected = golden("vqa_soft_targets.json")
    questions = [
        VQAQuestion(entry["question_id"], str(entry["image_id"]), "?", tuple(one["answer"] for one in entry["answers"]),
                 entry["multiple_choice_answer"], "", "")
        for entry in expected["annotations"]
    ]  # fmt: skip
    answers = build_answer_vocabulary(questions, min_answer_count=1)
    numbers = {answer: number for number, answer in enumerate(answers)}
    assert numbers == expected["ans2label"]
    for question, target in zip(questions, expected["target"], strict=True):
        assert compute_soft_scores(question.answers, numbers) == dict(
            zip(target["labels"], target["scores"], strict=True)
        )


def test_an_answer_needs_enough_questions():
    common = [VQAQuestion(i, "1", "?", ("two",), answer, "", "") for i, answer in enumerate(["two"] * 9 + ["dog"] * 8)]
    assert build_answer_vocabulary(common) == ["2"]
    assert build_answer_vocabulary(common, min_answer_count=8) == ["2", "dog"]


# Files


def write_files(folder: Path, images: list[int], official: str = "train2014") -> tuple[Path, Path]:
    """Questions and annotations with the fields that the official files have."""
    questions, annotations = [], []
    for image in images:
        answer = COLOURS[colour_of(image)]
        questions.append({"image_id": image, "question": f"{QUESTION}?", "question_id": image * 1000})
        people = [{"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(9)]
        people.append({"answer": "purple", "answer_confidence": "maybe", "answer_id": 10})
        annotations.append({
            "question_type": "what color is", "multiple_choice_answer": answer, "answers": people,
            "image_id": image, "answer_type": "other", "question_id": image * 1000,
        })  # fmt: skip
    about = {"info": {"version": "2.0"}, "data_type": "mscoco", "data_subtype": official, "license": {}}
    folder.mkdir(exist_ok=True)
    first = folder / f"v2_OpenEnded_mscoco_{official}_questions.json"
    second = folder / f"v2_mscoco_{official}_annotations.json"
    first.write_text(json.dumps({**about, "task_type": "Open-Ended", "questions": questions}))
    second.write_text(json.dumps({**about, "annotations": annotations}))
    return first, second


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return write_colours(tmp_path / "regions")


def tuned(tmp_path: Path, store: RegionStore, **changed: object) -> Path:
    run = write_pretrained(tmp_path / "run", [QUESTION])
    questions, annotations = write_files(tmp_path / "files", [*range(36), 999])
    settings = {
        "model": run, "questions": [questions], "annotations": [annotations], "regions": store.folder, "epochs": 25.0,
        "batch_size": 12, "learning_rate": 3e-3, "workers": 0, "min_answer_count": 3,
    }  # fmt: skip
    assert train(recipe, settings | changed, tmp_path / "vqa", device="cpu", precision="fp32") == 0
    return tmp_path / "vqa"


def test_the_report_of_a_run_tells_its_task_and_its_cards(store: RegionStore, tmp_path: Path):
    model = tuned(tmp_path, store, epochs=1.0, start_from="scratch", ablate="image")
    questions, annotations = write_files(tmp_path / "val", list(range(36, 40)), "val2014")
    evaluate_vqa(model, questions, store.folder, annotations, ablate="image", out=tmp_path / "card")
    write_report(model, tmp_path / "report.html", results=[tmp_path / "card"])
    page = check_page((tmp_path / "report.html").read_text())
    start = "from scratch, with the architecture of run, without the image."
    assert f"visual question answering (VQA), {start}" in page.text
    assert "loss and accuracy by step" in page.values_of("img", "alt")
    assert any(title.startswith("VQA v2, ") for title in page.texts_of("h2"))
    assert "videos" not in page.text and "audio" not in page.text
    with pytest.raises(DataError, match="was fine-tuned for a task: `comodal ask --explain`"):
        write_report(model, tmp_path / "other.html", data=store.folder)


def test_it_answers_by_looking(store: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture):
    model = tuned(tmp_path, store)
    assert "1 excluded: image is not in the store" in capsys.readouterr().err.replace("\n", " ")
    assert json.loads((model / "model" / "answers.json").read_text()) == build_answer_vocabulary(
        read_vqa_questions(*write_files(tmp_path / "files", list(range(36))))[0], 3
    )
    questions, annotations = write_files(tmp_path / "val", list(range(36, 40)), "val2014")
    out = tmp_path / "out"
    found = evaluate_vqa(model, questions, store.folder, annotations, out=out)
    assert found["vqa.accuracy"] == 1.0 == found["vqa.answer_type.other"]
    assert found["vqa.majority"] == pytest.approx(0.25)  # four pictures of four colours
    blind = evaluate_vqa(model, questions, store.folder, annotations, ablate="image")
    assert blind["vqa.accuracy"] == pytest.approx(0.25)
    questions_too, annotations_too = write_files(tmp_path / "more", [*range(36, 40), 777], "val2014")
    partly = evaluate_vqa(model, questions_too, store.folder, annotations_too)
    assert (partly["vqa.accuracy"], partly["vqa.accuracy.predicted"]) == (pytest.approx(0.8), 1.0)
    submission = json.loads((out / "submission.json").read_text())
    assert submission == [{"question_id": image * 1000, "answer": COLOURS[colour_of(image)]} for image in range(36, 40)]
    card = json.loads((out / "card.json").read_text())
    assert card["split"] == "v2_OpenEnded_mscoco_val2014_questions"
    assert card["scores"]["accuracy"]["value"] == 1.0 and set(card["files"]) == {"questions", "annotations"}


def test_without_annotations_there_is_a_submission_that_answers_everything(store: RegionStore, tmp_path: Path):
    model = tuned(tmp_path, store, epochs=0.3)
    questions, _ = write_files(tmp_path / "test", [3, 4, 777], "test2015")
    assert evaluate_vqa(model, questions, store.folder, out=tmp_path / "out") == {"vqa.items": 3.0}
    submission = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert [entry["question_id"] for entry in submission] == [3000, 4000, 777000]
    assert submission[2]["answer"] == "" and submission[0]["answer"] in COLOURS
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    missing = {"items": 3, "predicted": 2, "image is not in the store (incorrect)": 1}
    assert card["scores"] == {} and card["counts"] == missing
    assert card["settings"]["training start_from"] == "pretrained" and card["settings"]["training seed"] == 0
    assert "No score" in (tmp_path / "out" / "card.md").read_text()
    (model / "model" / "answers.json").unlink()
    with pytest.raises(CheckpointError, match=r"answers\.json is missing: it has the answer of each output"):
        evaluate_vqa(model, questions, store.folder)


def test_a_vocabulary_is_read_in_every_form_that_people_have(tmp_path: Path):
    answers = ["yes", "no", "2"]
    numbers = {answer: number for number, answer in enumerate(answers)}
    for name, content in (("label2ans.json", answers), ("ans2label.json", numbers)):
        (tmp_path / name).write_text(json.dumps(content))
        assert read_answer_vocabulary(tmp_path / name) == answers
    for name, content in (("trainval_label2ans.pkl", answers), ("trainval_ans2label.pkl", numbers)):
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=2))
        assert read_answer_vocabulary(tmp_path / name) == answers
    (tmp_path / "answers.txt").write_text("yes\nno\n\n2\n")
    assert read_answer_vocabulary(tmp_path / "answers.txt") == answers


def test_questions_that_the_vocabulary_cannot_answer_are_counted():
    people = [("Red.", "red"), ("blue",) * 10, ("two dogs", "dogs")]  # compared in the official way of writing
    assert count_unreachable_questions(people, ["red", "green"]) == {
        "no human answer is in the vocabulary (still scored)": 2
    }
    assert count_unreachable_questions(people, ["red", "blue", "dogs"]) == {}


def test_what_nothing_can_be_learnt_from_is_told_by_its_file(store: RegionStore, tmp_path: Path):
    (tmp_path / "answers.txt").write_text("mauve\n")
    with pytest.raises(DataError, match=r"train2014_questions\.json: none of its answers is in the vocabulary of 1"):
        tuned(tmp_path, store, answers=tmp_path / "answers.txt")
    with pytest.raises(ValueError, match="pass both validation_questions and validation_annotations"):
        tuned(tmp_path, store, validation_questions=write_files(tmp_path / "val", [1])[0])


class Harmful:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("harmed",)


def test_a_vocabulary_that_is_none_is_told_and_nothing_of_it_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.pkl").write_bytes(pickle.dumps({"yes": Harmful()}))
    with pytest.raises(DataError, match=r"bad\.pkl: .*mkdir"):
        read_answer_vocabulary(tmp_path / "bad.pkl")
    assert not (tmp_path / "harmed").exists()
    for content, sentence in (
        ('{"yes": 1, "no": 2}', "do not have the indices 0, 1, 2"),
        ('{"yes": 0, "no": "1"}', "do not have the indices 0, 1, 2"),
        ('["yes", "no", "yes"]', "the answer 'yes' is a duplicate"),
        ('"yes"', "neither a list of answers"),
        ("[1", "not JSON"),
    ):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(DataError, match=sentence):
            read_answer_vocabulary(tmp_path / "bad.json")


def test_the_submission_lists_each_question_with_its_answer(tmp_path: Path):
    write_vqa_results(tmp_path / "results.json", {2000: "no", 1000: "yes"})
    rows = [{"question_id": 1000, "answer": "yes"}, {"question_id": 2000, "answer": "no"}]  # as the server takes it
    assert json.loads((tmp_path / "results.json").read_text()) == rows


def test_files_that_do_not_fit_are_told(tmp_path: Path):
    questions, annotations = write_files(tmp_path / "a", [1, 2])
    others = write_files(tmp_path / "b", [3, 4])[1]
    with pytest.raises(DataError, match=r"no annotation of question 1000 .* nor of any other; are both of the same"):
        read_vqa_questions(questions, others)
    with pytest.raises(DataError, match="has a list of 'questions'; this one has info"):
        read_vqa_questions(annotations, None)
    with pytest.raises(DataError, match="No such file"):
        read_vqa_questions(tmp_path / "nowhere.json", None)
    twice = json.loads(annotations.read_text())
    twice["annotations"].append(twice["annotations"][1])
    others.write_text(json.dumps(twice))
    with pytest.raises(DataError, match=r"annotations\.json: question_id 2000 is a duplicate"):
        read_vqa_questions(questions, others)
    twice = json.loads(questions.read_text())
    twice["questions"].append(twice["questions"][0])
    questions.write_text(json.dumps(twice))
    with pytest.raises(DataError, match=r"questions\.json: question_id 1000 is a duplicate"):
        read_vqa_questions(questions, annotations)


def test_a_question_and_its_annotation_are_about_one_image(tmp_path: Path):
    """Otherwise the answers of one image would be scored on another."""
    questions, annotations = write_files(tmp_path / "a", [1, 2])
    content = json.loads(annotations.read_text())
    content["annotations"][1]["image_id"] = 7
    annotations.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"annotations\.json: question 2000 is about image 7, and in .* about image 2"):
        read_vqa_questions(questions, annotations)


def test_entries_that_one_of_two_files_lacks_are_counted(
    store: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture
):
    more, fewer = (
        write_files(tmp_path / "a", [36, 37, 38, 39], "val2014"),
        write_files(tmp_path / "b", [36, 37], "val2014"),
    )
    assert read_vqa_questions(more[0], fewer[1])[1] == {"question without annotation": 2}
    assert read_vqa_questions(fewer[0], more[1])[1] == {"annotation without question": 2}
    other = write_files(tmp_path / "c", [37, 38, 1, 2], "val2014")
    read, excluded = read_vqa_questions(more[0], other[1])
    assert [one.question_id for one in read] == [37_000, 38_000]
    assert excluded == {"question without annotation": 2, "annotation without question": 2}
    model = tuned(tmp_path, store, epochs=0.3)
    capsys.readouterr()
    evaluate_vqa(model, more[0], store.folder, other[1], out=tmp_path / "out")
    told = " ".join(capsys.readouterr().out.split())
    assert "2 questions; 2 excluded: question without annotation; 2 excluded: annotation without question" in told
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    counts = {"items": 2, "predicted": 2, "question without annotation": 2, "annotation without question": 2}
    assert card["counts"] == counts
    write_report(model, tmp_path / "report.html", results=[tmp_path / "out"])
    page = check_page((tmp_path / "report.html").read_text())
    assert "question without annotation 2, annotation without question 2" in page.text
    assert train(
        recipe,
        {
            "model": tmp_path / "run", "questions": [more[0]], "annotations": [other[1]], "regions": store.folder,
            "min_answer_count": 1, "batch_size": 2, "epochs": 1.0, "workers": 0,
        },
        tmp_path / "other",
        device="cpu",
    ) == 0  # fmt: skip
    assert "2 excluded: question without annotation" in " ".join(capsys.readouterr().err.split())


def test_the_card_says_how_its_interval_was_computed(store: RegionStore, tmp_path: Path):
    """All right is Wilson's interval of the images; all ten people agree or none, so values are 0 or 1; else they are
    graded."""
    model = tuned(tmp_path, store)

    def interval(images: list[int], said: str) -> str | None:
        questions, annotations = write_files(tmp_path / "val", images, "val2014")
        content = json.loads(annotations.read_text())
        content["annotations"][0]["answers"] = [{"answer": word} for word in said.split()]
        annotations.write_text(json.dumps(content))
        evaluate_vqa(model, questions, store.folder, annotations, out=tmp_path / "out")
        return json.loads((tmp_path / "out" / "card.json").read_text())["settings"].get("95 % interval")

    answer = COLOURS[colour_of(36)]
    assert interval([36, 37, 38], " ".join([answer] * 10)) == "Wilson, 3 independent items"
    assert interval([36, 37, 38], " ".join(["purple"] * 10)) == "Wilson, 3 independent items"
    assert interval([36, 37, 38], f"{answer} " + "purple " * 9) == "bootstrap, 3 images resampled"
    questions, _ = write_files(tmp_path / "test", [3, 4], "test2015")
    evaluate_vqa(model, questions, store.folder, out=tmp_path / "unlabeled")
    assert "95 % interval" not in json.loads((tmp_path / "unlabeled" / "card.json").read_text())["settings"]


def test_soft_scores_by_how_many_people_agree():
    scores = compute_soft_scores(["a"] * 1 + ["b"] * 2 + ["c"] * 3 + ["d"] * 4, {"a": 0, "b": 1, "c": 2, "d": 3})
    assert np.allclose([scores[i] for i in range(4)], [0.3, 0.6, 0.9, 1.0])


def test_annotations_that_do_not_say_the_most_common_answer_are_counted(tmp_path: Path):
    questions, annotations = write_files(tmp_path / "files", [0])
    content = json.loads(annotations.read_text())
    del content["annotations"][0]["multiple_choice_answer"]
    annotations.write_text(json.dumps(content))
    assert read_vqa_questions(questions, annotations)[0][0].most_common == COLOURS[colour_of(0)]
