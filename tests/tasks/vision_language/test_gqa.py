"""GQA: its official files as they are, scores worked by hand, a network that looks, and what must be told."""

import json
import re
from pathlib import Path

import pytest

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore
from comodal.errors import DataError
from comodal.tasks.vision_language.question_answering.gqa import (
    GQA_TASK,
    evaluate_gqa,
    parse_gqa_question,
    read_gqa_questions,
    recipe,
)
from comodal.tasks.vision_language.question_answering.single_answer import score_single_answers
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, QUESTION, colour_of, write_colours, write_pretrained

LOOK = "is it coloured"  # always yes: the words alone say it


def entry(image: int | str, text: str, answer: str | None, structural: str, semantic: str, balanced: bool = True):
    """A question with the fields of the official files; those of the test have no answer and no types."""
    asked = {"question": f"{text}?", "imageId": str(image), "isBalanced": balanced}
    known = {
        "answer": answer, "fullAnswer": f"It is {answer}.", "entailed": [], "equivalent": [], "semanticStr": "",
        "types": {"detailed": "x", "semantic": semantic, "structural": structural},
        "groups": {"global": "color", "local": "x"}, "annotations": {}, "semantic": [],
    }  # fmt: skip
    return asked if answer is None else asked | known


def questions(images: range) -> dict[str, dict]:
    found = {}
    for image in images:
        found[f"0{image}1"] = entry(image, QUESTION, COLOURS[colour_of(image)], "query", "attr")
        found[f"0{image}2"] = entry(image, LOOK, "yes", "verify", "obj")
    return found


def write(path: Path, found: dict) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found))
    return path


@pytest.fixture
def store(tmp_path: Path) -> RegionStore:
    return write_colours(tmp_path / "regions")


def tuned(tmp_path: Path, store: RegionStore, data: Path, **changed: object) -> Path:
    run = write_pretrained(tmp_path / "run", [QUESTION, LOOK])
    settings = {"model": run, "questions": data, "regions": store.folder, "epochs": 25.0, "batch_size": 24,
                "learning_rate": 4e-3, "workers": 0}  # fmt: skip
    assert train(recipe, settings | changed, tmp_path / "gqa", device="cpu", precision="fp32") == 0
    return tmp_path / "gqa"


def test_it_answers_by_looking_and_writes_what_the_server_takes(store: RegionStore, tmp_path: Path):
    folder = tmp_path / "train_all_questions"
    write(folder / "train_all_questions_0.json", questions(range(18)))
    write(folder / "train_all_questions_1.json", questions(range(18, 36)))
    model = tuned(tmp_path, store, folder)
    assert sorted(json.loads((model / "model" / "answers.json").read_text())) == sorted([*COLOURS, "yes"])
    held_out = questions(range(36, 40)) | {"99": entry(36, LOOK, "no", "verify", "obj", balanced=False)}
    data, out = write(tmp_path / "testdev_balanced_questions.json", held_out), tmp_path / "out"
    found = evaluate_gqa(model, data, store.folder, out=out)
    assert found["gqa.accuracy"] == found["gqa.open"] == found["gqa.binary"] == found["gqa.semantic.attr"] == 1.0
    assert found["gqa.majority"] == 0.5  # yes, of four yes and four colours; the unbalanced no does not count
    blind = evaluate_gqa(model, data, store.folder, ablate="image")
    assert (blind["gqa.structural.query"], blind["gqa.structural.verify"]) == (0.25, 1.0)
    submission = {one["questionId"]: one["prediction"] for one in json.loads((out / "submission.json").read_text())}
    assert submission["0361"] == COLOURS[colour_of(36)] and list(submission) == list(held_out)
    card = json.loads((out / "card.json").read_text())
    assert card["counts"] == {"items": 8, "predicted": 8, "not in the official score": 1}
    assert card["settings"]["95 % interval"] == "Wilson, 4 images, all with the same score"
    assert card["split"] == "testdev_balanced_questions" and card["scores"]["accuracy"]["value"] == 1.0


def test_the_test_gives_a_submission_that_answers_everything(store: RegionStore, tmp_path: Path):
    """A question whose picture is missing is refused: the official script ends with "missing predictions"."""
    model = tuned(tmp_path, store, write(tmp_path / "train.json", questions(range(8))), epochs=0.3)
    test = {"07": entry(1, QUESTION, None, "", ""), "08": entry(2, QUESTION, None, "", "")}
    data = write(tmp_path / "test_all_questions.json", test)
    assert evaluate_gqa(model, data, store.folder, out=tmp_path / "out") == {"gqa.items": 2.0}
    submission = json.loads((tmp_path / "out" / "submission.json").read_text())
    assert [one["questionId"] for one in submission] == ["07", "08"]
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["scores"] == {} and card["counts"] == {"items": 2, "predicted": 2}
    write(data, test | {"09": entry("n999", QUESTION, None, "", "")})
    with pytest.raises(DataError, match=r"test_all_questions\.json: the images of 1 of 3 items .* 'n999'"):
        evaluate_gqa(model, data, store.folder)


def test_scores_worked_by_hand():
    lines = [("a", "red", "query", "attr"), ("b", "blue", "query", "rel"), ("c", "yes", "logical", "attr"),
             ("d", "yes", "compare", "attr")]  # fmt: skip
    every = [parse_gqa_question(Path("q.json"), key, entry(1, "x", said, *kinds)) for key, said, *kinds in lines]
    found = score_single_answers(
        GQA_TASK, every, {"a": "red", "b": "Blue", "c": "yes", "d": ""}
    )  # answers count as they stand
    assert found["gqa.accuracy"] == found["gqa.open"] == found["gqa.binary"] == found["gqa.majority"] == 0.5
    assert found["gqa.semantic.attr"] == pytest.approx(2 / 3)
    assert (found["gqa.semantic.rel"], found["gqa.structural.logical"], found["gqa.structural.compare"]) == (0, 1, 0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('{"1": {"question"', r"q\.json: not JSON .*; the file may be truncated"),
        ("[1]", r"q\.json: GQA's files map question ids to questions"),
        ('{"7": 3}', r"q\.json: question 7 is 3, not an object"),
        ('{"7": {"question": "x"}}', "question 7 has no 'question' or no 'imageId'"),
        ('{"7": {"question": "x", "imageId": "1", "answer": 3}}', "or its 'answer' is not text"),
        ('{"7": {"question": "x", "imageId": "1"}}', "no question has an answer"),
        ('{"7": {"question": "x", "imageId": "n5", "answer": "a"}}', "none of its images is in"),
    ],
)
def test_a_file_that_cannot_be_used_is_told(
    store: RegionStore, tmp_path: Path, capsys: pytest.CaptureFixture, content: str, sentence: str
):
    run, data = write_pretrained(tmp_path / "run", [QUESTION]), tmp_path / "q.json"
    data.write_text(content)
    words = ["train", "gqa", "--model", str(run), "--questions", str(data), "--regions", str(store.folder)]
    assert main([*words, "--out", str(tmp_path / "out"), "--device", "cpu"]) == 1
    assert re.search(sentence, capsys.readouterr().err)


def test_folders_must_have_every_question_once(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.json of questions"):
        read_gqa_questions(tmp_path / "empty")
    for number in (0, 1):
        write(tmp_path / "all" / f"train_all_questions_{number}.json", questions(range(1)))
    with pytest.raises(DataError, match=r"_1\.json: question 001 is in another file"):
        read_gqa_questions(tmp_path / "all")
