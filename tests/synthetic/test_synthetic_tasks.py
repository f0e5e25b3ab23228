"""The synthetic's task sets are laid out as the originals are, name by name and field by field."""

import csv
import hashlib
import json
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from comodal.data.captions.caption_files import read_captions
from comodal.data.regions.region_store import RegionStore, RegionWriter
from comodal.data.regions.safe_unpickler import load_pickle
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.synthetic.formats.dcase_folders import SCENES_2013, SCENES_TAU
from comodal.synthetic.formats.task_sets import TASK_SETS
from comodal.synthetic.scenes.world import SILENT_KINDS, SOUNDING_KINDS
from comodal.synthetic.synthesize import synthesize
from comodal.tasks.vision_language import nlvr2, snli_ve
from comodal.tasks.vision_language.grounding.refcoco_files import read_expressions
from comodal.tasks.vision_language.image_rows import ImageRows
from comodal.tasks.vision_language.question_answering.vqa_files import read_vqa_questions

SMALL = {"videos": 0, "images": 0, "seconds": 1.0, "audio": 0, "scenes": 80, "side": 64, "audio_seconds": 1.0}
PICTURES = {"coco": "images", "flickr30k": "flickr30k-images", "vcr": "vcr1images", "nlvr2": "images"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made by the command line in two workers, where types are not checked."""
    folder = tmp_path_factory.mktemp("synthetic") / "world"
    flags = [word for name, value in SMALL.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "comodal", "synthesize", folder, *flags, "--tasks", "all", "--workers", "2"]
    subprocess.run(command, check=True, capture_output=True)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def whole(path: Path) -> dict:
    return json.loads(path.read_text())


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("name", PICTURES)
def test_boxes_name_every_picture_of_a_set_and_no_other(world: Path, name: str):
    folder = world / name / PICTURES[name]
    boxes = lines(world / name / "boxes.jsonl")
    pictures = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in {".jpg", ".png"}}
    assert {record["image"] for record in boxes} == pictures and len(pictures) == 80
    for record in boxes[:5]:
        with Image.open(folder / record["image"]) as image:
            assert image.size == (record["width"], record["height"]) == (64, 64)
            assert image.format == ("PNG" if name == "nlvr2" else "JPEG")


def test_vqa_has_the_files_and_fields_of_the_original(world: Path):
    folder = world / "coco/vqa"
    assert sorted(path.name for path in folder.iterdir()) == [
        "v2_OpenEnded_mscoco_test-dev2015_questions.json",
        "v2_OpenEnded_mscoco_test2015_questions.json",
        "v2_OpenEnded_mscoco_train2014_questions.json",
        "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_train2014_annotations.json",
        "v2_mscoco_val2014_annotations.json",
    ]
    for split in ("train2014", "val2014", "test2015"):
        content = whole(folder / f"v2_OpenEnded_mscoco_{split}_questions.json")
        assert {"info", "task_type", "data_type", "license", "data_subtype", "questions"} <= content.keys()
        assert content["data_subtype"] == split
        for question in content["questions"]:
            assert question.keys() == {"image_id", "question", "question_id"}
            assert question["question_id"] // 1000 == question["image_id"]
            assert (world / f"coco/images/{split}/COCO_{split}_{question['image_id']:012d}.jpg").is_file()
    annotations = whole(folder / "v2_mscoco_val2014_annotations.json")["annotations"]
    for entry in annotations:
        assert sorted(entry) == [
            "answer_type", "answers", "image_id", "multiple_choice_answer", "question_id", "question_type",
        ]  # fmt: skip
        assert [answer["answer_id"] for answer in entry["answers"]] == list(range(1, 11))
        assert {answer["answer_confidence"] for answer in entry["answers"]} <= {"yes", "maybe", "no"}
        assert entry["answer_type"] in {"yes/no", "number", "other"}
    test, dev = (whole(folder / f"v2_OpenEnded_mscoco_{name}2015_questions.json") for name in ("test", "test-dev"))
    assert {q["question_id"] for q in dev["questions"]} < {q["question_id"] for q in test["questions"]}
    read, _ = read_vqa_questions(
        folder / "v2_OpenEnded_mscoco_val2014_questions.json", folder / "v2_mscoco_val2014_annotations.json"
    )
    assert [question.most_common for question in read] == [entry["multiple_choice_answer"] for entry in annotations]


def test_references_have_the_fields_of_the_original_and_hold_nothing_but_plain_values(world: Path):
    raw = (world / "coco/refcoco+/refs(unc).p").read_bytes()
    assert raw[:2] == b"\x80\x02"  # protocol 2
    references = load_pickle(raw)
    instances = whole(world / "coco/refcoco+/instances.json")
    images = {image["id"]: image for image in instances["images"]}
    annotations = {annotation["id"]: annotation for annotation in instances["annotations"]}
    categories = {category["id"]: category["name"] for category in instances["categories"]}
    assert len(annotations) == len(instances["annotations"]) and set(categories.values()) == set(
        SOUNDING_KINDS + SILENT_KINDS
    )
    splits = defaultdict(set)
    sentence_ids = []
    for number, reference in enumerate(references):
        assert sorted(reference) == [
            "ann_id", "category_id", "file_name", "image_id", "ref_id", "sent_ids", "sentences", "split",
        ]  # fmt: skip
        annotation, image = annotations[reference["ann_id"]], images[reference["image_id"]]
        assert reference["ref_id"] == number and annotation["category_id"] == reference["category_id"]
        assert reference["file_name"] == f"{image['file_name'].removesuffix('.jpg')}_{reference['ann_id']}.jpg"
        assert (world / "coco/images/train2014" / image["file_name"]).is_file()
        assert annotation["image_id"] == reference["image_id"]
        for sentence, sentence_id in zip(reference["sentences"], reference["sent_ids"], strict=True):
            assert sorted(sentence) == ["raw", "sent", "sent_id", "tokens"] and sentence["sent_id"] == sentence_id
            assert " ".join(sentence["tokens"]) == sentence["sent"]
            sentence_ids.append(sentence_id)
        splits[reference["split"]].add(reference["image_id"])
        if reference["split"].startswith("test"):
            assert (categories[reference["category_id"]] in SOUNDING_KINDS) == (reference["split"] == "testA")
    read = read_expressions(world / "coco/refcoco+/refs(unc).p", world / "coco/refcoco+/instances.json")
    assert [expression.text for expression in read] == [s["raw"] for ref in references for s in ref["sentences"]]
    assert sentence_ids == list(range(len(sentence_ids)))
    assert set(splits) == {"train", "val", "testA", "testB"}
    assert not splits["train"] & splits["val"] and not (splits["train"] | splits["val"]) & splits["testA"]
    for annotation in annotations.values():
        (polygon,) = annotation["segmentation"]
        left, top, width, height = annotation["bbox"]
        x, y = polygon[::2], polygon[1::2]
        assert left <= min(x) and max(x) <= left + width and top <= min(y) and max(y) <= top + height
        assert 0 < annotation["area"] <= width * height and annotation["iscrowd"] == 0


def test_karpathys_files_are_read_by_the_reader_of_captions(world: Path):
    coco, flickr = whole(world / "coco/dataset_coco.json"), whole(world / "flickr30k/dataset_flickr30k.json")
    assert (coco["dataset"], flickr["dataset"]) == ("coco", "flickr30k")
    assert {image["split"] for image in coco["images"]} == {"train", "val", "test", "restval"}
    for content in (coco, flickr):
        for number, image in enumerate(content["images"]):
            assert image["imgid"] == number and len(image["sentences"]) == 5
            assert image["sentids"] == [sentence["sentid"] for sentence in image["sentences"]]
            assert all(sorted(sentence) == ["imgid", "raw", "sentid", "tokens"] for sentence in image["sentences"])
            assert image["sentences"][0]["tokens"][0] == image["sentences"][0]["raw"].split()[0].lower()
    for image in coco["images"]:
        assert (world / "coco/images" / image["filepath"] / image["filename"]).is_file()
        assert image["filename"] == f"COCO_{image['filepath']}_{image['cocoid']:012d}.jpg"
    read = read_captions(world / "flickr30k/dataset_flickr30k.json")
    assert Counter(caption.split for caption in read) == {"train": 320, "validation": 40, "test": 40}
    theirs = read_captions(world / "flickr30k/all_data_final_train_2014.jsonline")
    assert [c.caption for c in theirs] == [c.caption for c in read if c.split == "train"]
    assert len(read_captions(world / "flickr30k/all_data_final_test_set0_2014.jsonline")) == 40


def test_vcr_has_the_tree_and_fields_of_the_original(world: Path):
    common = {
        "movie", "objects", "interesting_scores", "answer_likelihood", "img_fn", "metadata_fn", "question",
        "question_orig", "answer_choices", "rationale_choices", "img_id", "annot_id", "match_fold", "match_index",
        "question_number",
    }  # fmt: skip
    right = {"answer_label", "answer_orig", "rationale_label", "rationale_orig"}
    movies = defaultdict(set)
    for split in ("train", "val", "test"):
        rows = lines(world / f"vcr/{split}.jsonl")
        assert [row["annot_id"] for row in rows] == [f"{split}-{number}" for number in range(len(rows))]
        for row in rows:
            assert row.keys() == (common if split == "test" else common | right)
            folder, _, _ = row["img_fn"].partition("/")
            assert folder == f"lsmdc_{row['movie']}"
            movies[split].add(row["movie"])
            metadata = whole(world / "vcr/vcr1images" / row["metadata_fn"])
            assert metadata["names"] == row["objects"] and (metadata["width"], metadata["height"]) == (64, 64)
            assert len(metadata["boxes"]) == len(metadata["segms"]) == len(row["objects"])
            assert all(len(box) == 5 for box in metadata["boxes"])
            assert all(len(point) == 2 for outline in metadata["segms"] for polygon in outline for point in polygon)
            assert len(row["answer_choices"]) == len(row["rationale_choices"]) == 4
            tags = [
                word for text in (row["question"], *row["answer_choices"]) for word in text if isinstance(word, list)
            ]
            assert tags and all(0 <= tag < len(row["objects"]) for words in tags for tag in words)
            assert all(row["objects"].count(row["objects"][tag]) == 1 for words in tags for tag in words)
            if split != "test":
                written = " ".join(str(w[0] + 1) if isinstance(w, list) else w for w in row["question"])
                assert row["question_orig"] == written.replace(" ?", "?")
    assert not movies["train"] & movies["val"] and not movies["train"] & movies["test"]


def test_nlvr2_and_snli_ve_are_read_by_the_tasks(world: Path):
    for split in ("train", "dev", "test1"):
        statements, _ = nlvr2.read_nlvr2_sentences(world / f"nlvr2/{split}.json")
        records = lines(world / f"nlvr2/{split}.json")
        assert statements and {statement.label for statement in statements} == {"True", "False"}
        for record, statement in zip(records, statements, strict=True):
            folder = world / "nlvr2/images" / split
            if split == "train":
                folder /= str(record["directory"])
            assert all((folder / f"{image}.png").is_file() for image in statement.images)
    for split in ("train", "dev", "test"):
        path = world / f"flickr30k/snli_ve_{split}.jsonl"
        statements, left_out = snli_ve.read_snli_ve_sentences(path)
        assert not left_out and {statement.label for statement in statements} == set(snli_ve.SNLI_VE_CLASSES)
        assert len({statement.key for statement in statements}) == len(statements)
        for record in lines(path):
            assert (world / f"flickr30k/flickr30k-images/{record['Flickr30K_ID']}.jpg").is_file()
            assert record["captionID"].split("#")[0] == f"{record['Flickr30K_ID']}.jpg"
            assert record["sentence2_binary_parse"].count("(") == len(record["sentence2"].split())
    train = {record["Flickr30K_ID"] for record in lines(world / "flickr30k/snli_ve_train.jsonl")}
    assert not train & {record["Flickr30K_ID"] for record in lines(world / "flickr30k/snli_ve_test.jsonl")}


def test_a_store_made_of_the_pictures_holds_what_the_files_name(world: Path, tmp_path: Path):
    """`prepare regions` calls an image by its path without the suffix."""
    names: dict[str, set[str]] = {
        "coco": {
            str(q["image_id"])
            for q in whole(world / "coco/vqa/v2_OpenEnded_mscoco_val2014_questions.json")["questions"]
        },
        "flickr30k": {record["Flickr30K_ID"] for record in lines(world / "flickr30k/snli_ve_dev.jsonl")},
        "vcr": {row["img_fn"] for row in lines(world / "vcr/val.jsonl")},
        "nlvr2": {name for s in nlvr2.read_nlvr2_sentences(world / "nlvr2/dev.json")[0] for name in s.images},
    }
    for name, asked in names.items():
        with RegionWriter(tmp_path / name, 1, about={}) as writer:
            for record in lines(world / name / "boxes.jsonl"):
                boxes = np.array(record["boxes"], np.float32)
                writer.add(record["image"].rpartition(".")[0], np.zeros((len(boxes), 1), np.float32), boxes, 64, 64)
        rows = ImageRows(RegionStore(tmp_path / name))
        assert asked and all(rows.find(image) is not None for image in asked)


def test_dcase2013_has_ten_stereo_sounds_of_each_scene_in_either_part(world: Path):
    for part in ("scenes_stereo", "scenes_stereo_testset"):
        files = sorted((world / "dcase2013" / part).iterdir())
        assert Counter(path.stem[:-2] for path in files) == dict.fromkeys(SCENES_2013, 10)
        assert {path.stem[-2:] for path in files} == {f"{take:02d}" for take in range(1, 11)}
        info = soundfile.info(files[0])
        assert (info.samplerate, info.channels, info.frames, info.subtype) == (44_100, 2, 44_100, "PCM_16")
    sound, _ = soundfile.read(files[0])
    assert not np.allclose(sound[:, 0], sound[:, 1], atol=0.01)


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_tau_has_the_tables_of_the_original_and_keeps_cities_apart(world: Path):
    meta, folder = table(world / "tau/meta.csv"), world / "tau/evaluation_setup"
    assert list(meta[0]) == ["filename", "scene_label", "identifier", "source_label"]
    train, test, evaluate = (table(folder / f"fold1_{name}.csv") for name in ("train", "test", "evaluate"))
    assert list(train[0]) == list(evaluate[0]) == ["filename", "scene_label"] and list(test[0]) == ["filename"]
    assert [row["filename"] for row in test] == [row["filename"] for row in evaluate]
    assert {row["filename"] for row in [*train, *test]} == {row["filename"] for row in meta}
    assert Counter(row["scene_label"] for row in meta) == dict.fromkeys(SCENES_TAU, 15)
    cities = {row["filename"]: row["identifier"].split("-")[0] for row in meta}
    assert not {cities[row["filename"]] for row in train} & {cities[row["filename"]] for row in test}
    for row in meta:
        scene, city, location, _, device = Path(row["filename"]).stem.split("-")
        assert (row["scene_label"], row["identifier"], row["source_label"]) == (scene, f"{city}-{location}", device)
    info = soundfile.info(world / "tau" / meta[0]["filename"])
    assert (info.samplerate, info.channels, info.subtype) == (48_000, 2, "PCM_24")


def test_urbansound8k_has_ten_folds_of_all_sorts_of_files(world: Path):
    with (world / "urbansound8k/metadata/UrbanSound8K.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    folds, formats = defaultdict(set), set()
    for row in rows:
        folds[row["fsID"]].add(row["fold"])
        recording, target, _, _ = row["slice_file_name"].removesuffix(".wav").split("-")
        assert (recording, target) == (row["fsID"], row["classID"]) and SOUNDING_KINDS[int(target)] == row["class"]
        info = soundfile.info(world / f"urbansound8k/audio/fold{row['fold']}" / row["slice_file_name"])
        formats.add((info.samplerate, info.subtype))
        assert info.duration == pytest.approx(float(row["end"]) - float(row["start"]), abs=0.05) and info.duration < 4
        assert row["salience"] in {"1", "2"}
    assert all(len(found) == 1 for found in folds.values())
    assert Counter(row["fold"] for row in rows) == {str(fold): 10 for fold in range(1, 11)}
    assert len({rate for rate, _ in formats}) >= 6 and len({subtype for _, subtype in formats}) >= 6


def test_every_word_that_is_said_is_one_piece_of_the_vocabulary(world: Path):
    said: dict[str, list[str]] = {"captions": [], "questions": [], "answers": []}
    for record in lines(world / "scenes" / "captions.jsonl"):
        said["captions"] += record["captions"]
    for name in ("coco", "flickr30k"):
        said["captions"] += [caption.caption for caption in read_captions(world / name / f"dataset_{name}.json")]
    for path in (world / "coco" / "vqa").glob("*questions.json"):
        said["questions"] += [entry["question"] for entry in whole(path)["questions"]]
    for path in (world / "coco" / "vqa").glob("*annotations.json"):
        said["answers"] += [entry["multiple_choice_answer"] for entry in whole(path)["annotations"]]
    references = load_pickle((world / "coco" / "refcoco+" / "refs(unc).p").read_bytes())
    said["references"] = [sentence["sent"] for entry in references for sentence in entry["sentences"]]
    said["statements"] = [entry["sentence2"] for entry in lines(world / "flickr30k" / "snli_ve_train.jsonl")]
    said["pairs"] = [entry["sentence"] for entry in lines(world / "nlvr2" / "train.json")]
    riddles = [choice for entry in lines(world / "vcr" / "train.jsonl") for choice in entry["rationale_choices"]]
    said["riddles"] = [" ".join(map(str, choice)) for choice in riddles]
    vocabulary = WordPieceTokenizer.read(world / "vocab.txt")
    for kind, texts in said.items():
        assert texts, kind
        for text in texts:
            pieces = [vocabulary.vocabulary[piece] for piece in vocabulary.encode(text, 100)]
            assert not [piece for piece in pieces if piece.startswith("##") or piece == "[UNK]"], text


def test_another_process_with_one_worker_writes_the_same_bytes_and_only_what_is_asked_for(world: Path, tmp_path: Path):
    synthesize(tmp_path / "other", tasks=["coco", "vcr"], workers=1, **SMALL)
    assert not (tmp_path / "other/nlvr2").exists()
    for name in ("coco", "vcr"):
        assert digests(tmp_path / "other" / name) == digests(world / name)


def test_a_killed_run_goes_on_to_the_same_end_and_leaves_finished_sets_alone(world: Path, tmp_path: Path):
    """As a kill leaves it: some files there, one half written under its temporary name, no word that all is there."""
    folder = tmp_path / "killed"
    shutil.copytree(world, folder)
    for name in set(TASK_SETS) - {"coco"}:
        (folder / name / "about.json").unlink()
        files = sorted(path for path in (folder / name).rglob("*") if path.is_file())
        files[-1].with_name(f".{files[-1].name}.77.part").write_bytes(b"half")
        for path in (files[0], files[len(files) // 2], files[-1]):
            path.unlink()
    before = {path: path.stat().st_mtime_ns for path in (folder / "coco").rglob("*")}
    synthesize(folder, tasks=["all"], workers=1, **SMALL)
    assert digests(folder) == digests(world)
    assert {path: path.stat().st_mtime_ns for path in (folder / "coco").rglob("*")} == before


def test_impossible_sets_are_told_before_anything_is_made(tmp_path: Path):
    with pytest.raises(ValueError, match=r"unknown task set 'vqa'; available are coco, .*, and all"):
        synthesize(tmp_path / "none", tasks=["coco", "vqa"], **SMALL)
    with pytest.raises(ValueError, match="task sets need 10 scenes or more, so that each split has some; got 9"):
        synthesize(tmp_path / "none", tasks=["coco"], **{**SMALL, "scenes": 9})
    assert not (tmp_path / "none").exists()
