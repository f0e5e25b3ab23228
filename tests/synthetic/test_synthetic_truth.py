"""What the synthetic data ask and says is true, needs the picture, and needs more than one of its objects."""

import json
import pickle
import re
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from comodal.synthetic.scenes.object_scenes import compute_hull, compute_polygon_area, list_scene_images
from comodal.synthetic.scenes.world import SILENT_KINDS, SOUNDING_KINDS, Purpose, make_crowd
from tests.support.synthetic_truth import (
    NOUN,
    PLACE,
    answer,
    at,
    fits,
    is_true,
    label,
    meant,
    of_pair,
    read_boxes,
    those,
)

SCENES = {"coco": 800, "flickr30k": 200, "vcr": 200, "nlvr2": 240}
WRITE = """
import json, sys
from pathlib import Path
from comodal.synthetic.scenes.synthesis_options import SynthesisOptions
from comodal.synthetic.formats.task_sets import TASK_SETS
for name, scenes in json.loads(sys.argv[2]).items():
    TASK_SETS[name].write_lists(Path(sys.argv[1], name), SynthesisOptions(0, 1.0, 0, 0, scenes, 128, 10.0, 1.0, 3))
"""
NAMES = set(SOUNDING_KINDS + SILENT_KINDS)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lists of all sets of pictures; nothing is painted. In a process of its own, where types are not checked."""
    folder = tmp_path_factory.mktemp("sets")
    subprocess.run([sys.executable, "-c", WRITE, folder, json.dumps(SCENES)], check=True)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def questions(made: Path, split: str) -> list[tuple[str, dict]]:
    """Texts with their annotations."""
    asked = json.loads((made / f"coco/vqa/v2_OpenEnded_mscoco_{split}_questions.json").read_text())["questions"]
    known = json.loads((made / f"coco/vqa/v2_mscoco_{split}_annotations.json").read_text())["annotations"]
    return [(q["question"], a) for q, a in zip(asked, known, strict=True) if q["question_id"] == a["question_id"]]


def by_number(boxes: dict[str, list[dict]]) -> dict[int, list[dict]]:
    return {int(Path(image).stem.rpartition("_")[2]): things for image, things in boxes.items()}


def test_every_question_is_answered_rightly(made: Path):
    things = by_number(read_boxes(made / "coco/boxes.jsonl"))
    asked = [*questions(made, "train2014"), *questions(made, "val2014")]
    assert len(asked) > 2000 and len({annotation["question_type"] for _, annotation in asked}) == 6
    for text, annotation in asked:
        assert answer(text, things[annotation["image_id"]]) == annotation["multiple_choice_answer"], text


def test_who_does_not_look_guesses(made: Path):
    """The majority by text, the majority by form and a classifier of words, all fitted on other pictures, stay at what
    even odds give: for each form, one over the number of its answers."""
    train = [(text, annotation["multiple_choice_answer"]) for text, annotation in questions(made, "train2014")]
    test = [(text, annotation["multiple_choice_answer"]) for text, annotation in questions(made, "val2014")]
    things = by_number(read_boxes(made / "coco/boxes.jsonl"))
    asked = json.loads((made / "coco/vqa/v2_OpenEnded_mscoco_test2015_questions.json").read_text())["questions"]
    test += [(q["question"], answer(q["question"], things[q["image_id"]])) for q in asked]
    assert len(test) > 1000
    possible, by_form, by_text = defaultdict(set), defaultdict(Counter), defaultdict(Counter)
    for text, right in train:
        possible[form_of(text)].add(right)
        by_form[form_of(text)][right] += 1
        by_text[text][right] += 1
    odds = np.array([1 / len(possible[form_of(text)]) for text, _ in test])
    # So many right answers do even odds give, and four times the deviation of that number.
    most = odds.mean() + 4 * np.sqrt((odds * (1 - odds)).sum()) / len(test)
    assert most < 0.42
    forms = [by_form[form_of(text)].most_common(1)[0][0] for text, _ in test]
    texts = [by_text[text].most_common(1)[0][0] if text in by_text else forms[i] for i, (text, _) in enumerate(test)]
    counts = CountVectorizer(ngram_range=(1, 2), binary=True)
    seen = counts.fit_transform([text for text, _ in train])
    reader = LogisticRegression(C=0.3, max_iter=60, tol=1e-2).fit(seen, [right for _, right in train])
    words = reader.predict(counts.transform([text for text, _ in test]))
    for guesses in (forms, texts, words):
        assert np.mean([guess == right for guess, (_, right) in zip(guesses, test, strict=True)]) < most


def form_of(text: str) -> str:
    """The question without what it is about."""
    return re.sub(NOUN, "_", re.sub(PLACE, "@", text))


def test_answers_of_each_form_are_equally_frequent(made: Path):
    """Two answers may differ by two for each way of wording a form that tells something of the answer."""
    wordings = {"How many _s are there?": 3, "Is there a _?": 1, "Are there more _s than _s?": 2}
    wordings |= {"Is the _ the same color as the _?": 1, "Is the _ larger than the _?": 1}
    for split in ("train2014", "val2014"):
        answers = defaultdict(Counter)
        for text, annotation in questions(made, split):
            answers[form_of(text.replace("Is there an ", "Is there a "))][annotation["multiple_choice_answer"]] += 1
        for form, count in wordings.items():
            assert len(answers[form]) == (4 if form.startswith("How many") else 2)
            assert max(answers[form].values()) - min(answers[form].values()) <= 2 * count


def test_a_place_in_a_question_matters(made: Path):
    """Without its place, what is asked about is several things that are not alike."""
    things = by_number(read_boxes(made / "coco/boxes.jsonl"))
    asked = [(text, a) for text, a in questions(made, "train2014") if text.startswith("What color")]
    assert len(asked) > 100
    for text, annotation in asked:
        noun = text.removeprefix("What color is the ").split()[0]
        assert len({thing["color"] for thing in those(noun, things[annotation["image_id"]])}) > 1


def test_the_right_answer_is_the_most_common_one_and_some_people_err(made: Path):
    every = [annotation for _, annotation in questions(made, "train2014")]
    agreeing = [sum(a["answer"] == q["multiple_choice_answer"] for a in q["answers"]) for q in every]
    assert min(agreeing) == 7 and 9 < np.mean(agreeing) < 9.7
    sure = Counter(a["answer_confidence"] for q in every for a in q["answers"])
    assert set(sure) == {"yes", "maybe", "no"} and sure["yes"] > 0.75 * sure.total()


def references(made: Path) -> list[dict]:
    return pickle.loads((made / "coco/refcoco+/refs(unc).p").read_bytes())


def test_every_expression_fits_one_object_and_its_noun_several(made: Path):
    """By brute force over the objects of the picture; no expression says where in the picture something is."""
    things = by_number(read_boxes(made / "coco/boxes.jsonl"))
    instances = json.loads((made / "coco/refcoco+/instances.json").read_text())
    boxes = {annotation["id"]: annotation["bbox"] for annotation in instances["annotations"]}
    expressions = 0
    for reference in references(made):
        picture = things[reference["image_id"]]
        for sentence in reference["sentences"]:
            (found,) = meant(sentence["raw"], picture)
            left, top, right, bottom = found["box"]
            assert boxes[reference["ann_id"]] == [left, top, right - left, bottom - top], sentence["raw"]
            words = sentence["raw"].replace("the ", "").replace("largest ", "").replace("smallest ", "").split()
            noun = words[: next(i for i, word in enumerate(words) if word in NAMES | {"thing"}) + 1]
            assert sum(fits(" ".join(noun), thing) for thing in picture) > 1, sentence["raw"]
            expressions += 1
    assert expressions > 1500


def test_who_does_not_read_the_expression_guesses_the_box(made: Path):
    """The largest box, the smallest, the first: each is right about as often as any."""
    things = by_number(read_boxes(made / "coco/boxes.jsonl"))
    every = references(made)
    chance = np.mean([1 / len(things[r["image_id"]]) for r in every])
    for choose in (max, min):
        hits = 0
        for reference in every:
            picture = things[reference["image_id"]]
            chosen = choose(picture, key=lambda t: (t["box"][2] - t["box"][0]) * (t["box"][3] - t["box"][1]))
            hits += chosen["number"] == reference["ann_id"] % 100
        assert hits / len(every) == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / len(every)))


def test_a_sentence_about_two_pictures_is_true_of_half_of_its_pairs(made: Path):
    things = {Path(image).stem: found for image, found in read_boxes(made / "nlvr2/boxes.jsonl").items()}
    labels = defaultdict(list)
    for split in ("train", "dev", "test1"):
        for line in lines(made / f"nlvr2/{split}.json"):
            pair, _, number = line["identifier"].rpartition("-")
            true = of_pair(line["sentence"], things[f"{pair}-img0"], things[f"{pair}-img1"])
            assert str(true) == line["label"], line["sentence"]
            labels[pair.rpartition("-")[0], number, line["sentence"]].append(line["label"])
    assert len(labels) > 80
    assert all(sorted(found) == ["False", "False", "True", "True"] for found in labels.values())


def test_a_statement_is_what_its_label_says_and_labels_are_even(made: Path):
    things = {Path(image).stem: found for image, found in read_boxes(made / "flickr30k/boxes.jsonl").items()}
    for split in ("train", "dev", "test"):
        records = lines(made / f"flickr30k/snli_ve_{split}.jsonl")
        for line in records:
            assert label(line["sentence2"], things[line["Flickr30K_ID"]]) == line["gold_label"], line["sentence2"]
        counts = Counter(line["gold_label"] for line in records)
        assert max(counts.values()) - min(counts.values()) <= 2 * 6  # of six cues: four places, colours, likeness


def test_of_four_choices_one_is_true_and_none_stands_out(made: Path):
    """Each word of a choice is in two of the four, or all four are the places; and no two colours of them are equal."""
    things = read_boxes(made / "vcr/boxes.jsonl")
    rows = [*lines(made / "vcr/train.jsonl"), *lines(made / "vcr/val.jsonl")]
    assert len(rows) > 200
    for row in rows:
        picture = things[row["img_fn"]]
        for choices, right in (
            (row["answer_choices"], row["answer_label"]),
            (row["rationale_choices"], row["rationale_label"]),
        ):
            if choices[0][0] == "One":
                place, tag = " ".join(row["question"][2:-2]), row["question"][-2]
                (found,) = at("thing", place, picture[tag[0]]["kind"], picture)
                truth = [choice[1:3] == [found["color"], found["kind"]] for choice in choices]
            else:
                truth = [is_true(choice, picture) for choice in choices]
            assert truth == [number == right for number in range(4)]
            words = Counter(str(word) for choice in choices for word in set(map(str, choice)))
            is_places = row["question"][0] == "Where" and choices is row["answer_choices"]
            assert set(words.values()) <= ({1, 2, 4} if is_places else {2, 4})
    for name in ("answer_label", "rationale_label"):
        labels = Counter(row[name] for row in rows)
        assert len(labels) == 4 and max(labels.values()) < 0.25 * len(rows) + 4 * np.sqrt(len(rows) * 0.1875)


def test_captions_of_crowds_count_rightly(made: Path):
    """'Two balls, three drums and a mug.'"""
    numbers = {"a": 1, "an": 1, "two": 2, "three": 3}
    captioned = json.loads((made / "flickr30k/dataset_flickr30k.json").read_text())["images"]
    things = read_boxes(made / "flickr30k/boxes.jsonl")
    for image in captioned:
        counted = image["sentences"][3]["raw"].lower().rstrip(".").replace(" and ", ", ").split(", ")
        said = Counter({words.split()[1].rstrip("s"): numbers[words.split()[0]] for words in counted})
        assert said == Counter(thing["kind"] for thing in things[image["filename"]])


def test_an_outline_lies_in_its_box_and_holds_the_area_that_geometry_gives():
    """A square of side 2 has the area 4; a hull is as wide and as high as what it goes around."""
    assert compute_polygon_area([(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]) == 4
    for index in range(20):
        (picture,) = list_scene_images(index, Purpose.VCR, ["a.jpg"], 128)
        for thing, seen in zip(make_crowd(index, Purpose.VCR, 0).objects, picture.objects, strict=True):
            points = np.array(compute_hull(thing, 128))
            left, top, right, bottom = seen.box
            assert np.all(points >= (left, top)) and np.all(points <= (right, bottom))
            assert np.ptp(points[:, 0]) > right - left - 4 and np.ptp(points[:, 1]) > bottom - top - 4
            assert 0.3 * seen.area < compute_polygon_area(compute_hull(thing, 128)) <= seen.area


def test_kinds_recur_in_crowds_and_nothing_overlaps_much():
    hidden = pairs = 0
    for index in range(200):
        (picture,) = list_scene_images(index, Purpose.COCO, [""], 128)
        assert 4 <= len(picture.objects) <= 6
        assert max(Counter(thing.kind for thing in picture.objects).values()) >= 2
        assert len({thing.color for thing in picture.objects}) <= 3
        for number, one in enumerate(picture.objects):
            for other in picture.objects[:number]:
                sides = [min(one.box[a + 2], other.box[a + 2]) - max(one.box[a], other.box[a]) for a in (0, 1)]
                hidden += min(sides) > 0 and sides[0] * sides[1] > 0.25 * min(one.area, other.area)
                pairs += 1
    assert hidden < 0.02 * pairs
