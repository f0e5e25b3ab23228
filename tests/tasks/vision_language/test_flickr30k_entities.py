"""Flickr30k Entities: unions, coordinates and scores worked by hand, hostile XML, and a network that points."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from comodal.cli.program import main
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.errors import DataError
from comodal.tasks.vision_language.grounding.flickr30k_entities import evaluate_phrases, recipe, score_phrases
from comodal.tasks.vision_language.grounding.flickr30k_entities_files import (
    REASON_ENTITY_NO_BOX,
    REASON_NOT_VISUAL,
    REASON_WHOLE_SCENE,
    EntityPhrase,
    EntityPhrases,
    read_caption_phrases,
    read_entity_boxes,
    read_entity_phrases,
)
from comodal.tasks.vision_language.grounding.refcoco import GroundingData
from comodal.training.run import train
from tests.support.small_tasks import COLOURS, DIM, SIDE, write_pretrained

# a caption as the data set's README describes it: several types, the entity 0, punctuation and brackets apart
CAPTION = (
    "[/EN#12/people/other Two men] in [/EN#13/clothing blue , worn coats] look at [/EN#0/notvisual it] near "
    "[/EN#14/scene the sea] ( [/EN#15/bodyparts hands] ) ."
)


def an_object(names: tuple[str, ...], box: tuple[int, int, int, int] | None = None, scene: int = 0) -> str:
    """As in the official files: a box, or the two flags."""
    told = "".join(f"<name>{name}</name>" for name in names)
    if box is None:
        return f"<object>{told}<scene>{scene}</scene><nobndbox>{1 - scene}</nobndbox></object>"
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object>{told}<bndbox>{sides}</bndbox></object>"


def annotated(*objects: str) -> str:
    size = "<size><width>100</width><height>100</height><depth>3</depth></size>"
    return f"<annotation><filename>7.jpg</filename>{size}{''.join(objects)}</annotation>"


def write(folder: Path, captions: dict[str, str], xml: dict[str, str], lists: dict[str, list[str]]) -> list[Path]:
    """Sentences/, Annotations/ and the lists of a data set."""
    sentences, annotations = folder / "Sentences", folder / "Annotations"
    for inside in (sentences, annotations):
        inside.mkdir(parents=True, exist_ok=True)
    for image, text in captions.items():
        (sentences / f"{image}.txt").write_text(text + "\n")
    for image, text in xml.items():
        (annotations / f"{image}.xml").write_text(text)
    for name, images in lists.items():
        (folder / f"{name}.txt").write_text("\n".join(images) + "\n")
    return [sentences, annotations, *(folder / f"{name}.txt" for name in lists)]


def test_phrases_are_read_with_their_entities_and_types(tmp_path: Path):
    sentences, *_ = write(tmp_path, {"7": CAPTION}, {}, {})
    assert read_caption_phrases(sentences / "7.txt") == [
        [
            EntityPhrase("12", ("people", "other"), "Two men"),
            EntityPhrase("13", ("clothing",), "blue , worn coats"),
            EntityPhrase("0", ("notvisual",), "it"),
            EntityPhrase("14", ("scene",), "the sea"),
            EntityPhrase("15", ("bodyparts",), "hands"),
        ]
    ]


def test_the_box_of_an_entity_is_around_all_its_boxes_and_begins_with_0(tmp_path: Path):
    xml = annotated(
        an_object(("12",), (11, 21, 30, 60)), an_object(("12", "13"), (5, 31, 20, 90)), an_object(("14",), scene=1)
    )
    write(tmp_path, {}, {"7": xml}, {})
    marked = read_entity_boxes(tmp_path / "Annotations" / "7.xml")
    assert marked.boxes == {"12": (4.0, 20.0, 29.0, 89.0), "13": (4.0, 30.0, 19.0, 89.0)}
    assert marked.scenes == {"14"}


def test_what_cannot_be_found_is_left_out_and_counted(tmp_path: Path):
    xml = annotated(
        an_object(("12",), (1, 1, 9, 9)),
        an_object(("14",), scene=1),
        an_object(("15",)),
        an_object(("13",), (2, 2, 3, 3)),
    )
    sentences, annotations, images = write(tmp_path, {"7": f"A dog .\n\n{CAPTION}"}, {"7": xml}, {"val": ["7"]})
    found = read_entity_phrases(images, sentences, annotations)
    assert found.excluded == Counter({REASON_NOT_VISUAL: 1, REASON_WHOLE_SCENE: 1, REASON_ENTITY_NO_BOX: 1})
    assert [(one.sentence, one.text, one.split) for one in found.expressions] == [
        ("7#1.0", "Two men", "val"),
        ("7#1.1", "blue , worn coats", "val"),
    ]
    without = read_entity_phrases(images, sentences, None)
    assert [one.box for one in without.expressions] == [None] * 4 and without.excluded == Counter(
        {REASON_NOT_VISUAL: 1}
    )


def test_scores_are_those_worked_by_hand():
    # three phrases, overlaps with two boxes each; the first answer is right at exactly a half
    overlaps = {"a": [0.5, 0.2], "b": [0.9, 0.1], "c": [0.0, 0.4]}
    gathered = GroundingData([], [], {key: np.array(rows, np.float32) for key, rows in overlaps.items()})
    kinds = {"a": ("people", "other"), "b": ("people",), "c": ("other",)}
    found = score_phrases(
        {"a": 0.5, "b": 0.1, "c": 0.4}, EntityPhrases([], kinds, Counter()), gathered, ["1", "1", "2"]
    )
    assert found["phrases.accuracy"] == pytest.approx(1 / 3)
    assert found["phrases.oracle"] == pytest.approx(2 / 3)
    assert found["phrases.chance_level"] == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert found["phrases.type.people"] == 0.5 == found["phrases.type.other"]


HOSTILE = {
    '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>': "declares a document type",
    '<!DOCTYPE a [<!ENTITY f SYSTEM "file:///etc/passwd">]><annotation>&f;</annotation>': "declares a document type",
    "<annotation><object>": "damaged XML",
    "<annotation>&unknown;</annotation>": "damaged XML",
    "": "damaged XML",
    '<?xml version="1.0" encoding="nobody-knows"?><annotation/>': "damaged XML",
    "<html/>": "its root is html",
    "<a>" * 50_000 + "</a>" * 50_000: "its root is a",
    "<annotation>" + " " * (1 << 20) + "</annotation>": "more than 1,048,576 bytes",
    annotated(an_object((), (1, 1, 2, 2))): "object 0: it has no entity name",
    annotated(an_object(("1",), (5, 1, 2, 2))): "xmin 5, ymin 1, xmax 2, ymax 2 is not a valid box",
    annotated(an_object(("1",))).replace(">1</nobndbox>", ">0</nobndbox>"): "neither a bndbox, nor nobndbox",
    annotated(an_object(("1",), (1, 1, 2, 2))).replace("<xmin>1<", "<xmin>left<"): "xmin 'left'.* are not integers",
}


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_or_damaged_annotation_ends_in_one_sentence(tmp_path: Path, content: str):
    path = tmp_path / "7.xml"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"7\.xml.*{HOSTILE[content]}") as found:
        read_entity_boxes(path)
    assert len(str(found.value).splitlines()) == 1


def test_files_that_are_missing_or_something_else_are_named(tmp_path: Path):
    captions = {"7": CAPTION, "8": "[/EN#12/people a man", "9": "A man ."}
    lists = {
        "one": ["6"],
        "two": ["8"],
        "three": ["9"],
        "four": ["7", "7"],
        "five": ["../7"],
        "six": [""],
        "seven": ["7"],
    }
    sentences, annotations, *images = write(tmp_path, captions, {}, lists)
    for path, sentence in zip(
        images,
        (
            r"6\.txt: No such file",
            r"8\.txt, line 1: a phrase is not marked like",
            r"three\.txt: no phrase to ground in",
            r"four\.txt: '7' is a duplicate",
            r"five\.txt: '\.\./7' is not an image id",
            r"six\.txt: the list of images is empty",
        ),
        strict=False,
    ):
        with pytest.raises(DataError, match=sentence):
            read_entity_phrases(path, sentences, None)
    with pytest.raises(DataError, match=r"7\.xml: No such file"):
        read_entity_phrases(images[-1], sentences, annotations)
    with pytest.raises(
        DataError, match="nowhere: not a folder of annotations; omit it to predict boxes without scores"
    ):
        read_entity_phrases(images[-1], sentences, tmp_path / "nowhere")


BOXES = [(10 * place + 1, 1, 10 * place + 10, 51) for place in range(4)]  # counted from 1


def colour_at(image: int, place: int) -> int:
    return int(np.random.default_rng(image).permutation(4)[place])


def write_colours(folder: Path, images: int = 40) -> tuple[RegionStore, list[Path]]:
    """Four regions side by side, each of another colour, and a caption that says what two of them are."""
    rng, captions, xml = np.random.default_rng(0), {}, {}
    boxes = np.array(BOXES, np.float32) - 1
    with RegionWriter(folder / "regions", DIM, about={"boxes": "ground truth"}) as writer:
        for image in range(images):
            features = rng.normal(0, 0.1, (4, DIM)).astype(np.float32)
            features[range(4), [colour_at(image, place) for place in range(4)]] += 2
            writer.add(str(image), features, boxes, SIDE, SIDE)
            places = (image % 4, (image + 1) % 4)
            said = [f"[/EN#{p + 1}/other the {COLOURS[colour_at(image, p)]} one]" for p in places]
            captions[str(image)] = f"{said[0]} and {said[1]} and [/EN#0/notvisual that] ."
            xml[str(image)] = annotated(*(an_object((str(place + 1),), BOXES[place]) for place in range(4)))
    lists = {"train": [str(i) for i in range(32)], "val": [str(i) for i in range(32, 36)],
             "test": [str(i) for i in range(36, images)]}  # fmt: skip
    return RegionStore(folder / "regions"), write(folder, captions, xml, lists)


def test_it_points_at_what_is_meant_and_without_boxes_only_says_where(tmp_path: Path, capsys: pytest.CaptureFixture):
    store, (sentences, annotations, images, validation, test) = write_colours(tmp_path)
    run = write_pretrained(tmp_path / "run", [f"the {colour} one" for colour in COLOURS])
    settings = {
        "model": run, "images": images, "sentences": sentences, "annotations": annotations, "regions": store.folder,
        "validation": validation, "epochs": 60.0, "batch_size": 32, "learning_rate": 4e-3, "workers": 0,
    }  # fmt: skip
    assert train(recipe, settings, tmp_path / "tuned", device="cpu", precision="fp32") == 0
    out = tmp_path / "out"
    found = evaluate_phrases(tmp_path / "tuned", test, sentences, store.folder, annotations, out=out, train_data=images)
    assert found["phrases.accuracy"] == 1.0 == found["phrases.oracle"] == found["phrases.type.other"]
    assert found["phrases.chance_level"] == pytest.approx(1 / 5)  # four regions and the whole image
    blind = evaluate_phrases(tmp_path / "tuned", test, sentences, store.folder, annotations, ablate="text")
    assert blind["phrases.accuracy"] <= 0.6
    card = json.loads((out / "card.json").read_text())
    assert card["counts"] == {"items": 8, "predicted": 8, REASON_NOT_VISUAL: 4} and card["split"] == "test"
    assert card["scores"]["baseline: box geometry"]["value"] == 1 / 4  # each of the four places is correct as often
    assert card["scores"]["baseline: bag of words times region features"]["value"] >= 7 / 8
    first = json.loads((out / "predictions.json").read_text())
    named = {entry["sent_id"]: entry for entry in first}
    assert named["36#0.0"]["ref_id"] == "1" and named["36#0.0"]["box"] == [0.0, 0.0, 9.0, 50.0]
    assert named["36#0.0"]["iou"] == 1.0

    capsys.readouterr()
    flags = {"model": tmp_path / "tuned", "images": test, "sentences": sentences, "regions": store.folder, "out": out}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    assert main(["evaluate", "phrases", *words]) == 0
    assert "without --annotations there is no score" in capsys.readouterr().out
    again = json.loads((out / "predictions.json").read_text())
    assert [entry["box"] for entry in again] == [entry["box"] for entry in first]
    assert not any("iou" in entry for entry in again)
    card = json.loads((out / "card.json").read_text())
    assert card["scores"] == {} and card["counts"]["items"] == 8
