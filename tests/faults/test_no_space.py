"""A disk that is really full (ENOSPC), for every command that writes: one sentence that names the file, and the same
command finishes when there is space, with what an undisturbed run leaves."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.regions.extract import extract_regions
from tests.inference.test_search import save_run
from tests.support.full_disk_commands import why_impossible
from tests.support.make_media import make_tone, make_video
from tests.support.paths import FIXTURES, ROOT
from tests.support.small_captions import write_captions
from tests.support.small_tasks import QUESTION, write_colours, write_pretrained
from tests.support.small_world import write_world
from tests.tasks.vision_language.test_vqa import write_files

SENTENCE = re.compile(
    r"comodal: error: (?P<file>\S+)"
    r"(: the disk is full; free some space and run the same command again \(a training with --resume\)"
    r"| cannot be written \(.*No space left on device\); .*free disk space, then continue with --resume)"
)


def write_features(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(40):
        boxes = np.float32([[0, 0, 90, 70], [10, 10, 60 + number % 40, 75]])
        values = {"image_id": str(number), "image_w": 100, "image_h": 80, "num_boxes": 2, "boxes": boxes}
        np.save(folder / f"{number}.npy", values | {"features": rng.standard_normal((2, 512)).astype(np.float32)})


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read."""
    at, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    if (reason := why_impossible(at)) is not None:
        pytest.skip(f"a file system that is full cannot be mounted here: {reason}")
    torch.manual_seed(0)
    save_model(L3Net(make_small_l3net_config(width=2, image_size=32)), at / "network", {})
    for number in range(3):
        make_video(at / "videos" / f"{number}.mp4", seed=number)
        for kind in "ab":
            make_tone(at / "tones" / "train" / kind / f"{number}.wav", 1.0, hertz=300.0 + 100 * number)
            path = at / "images" / "train" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(path)
    write_features(at / "features")
    box = {"image_id": 1, "bbox": [1, 2, 30, 40]}
    instances = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [box | {"id": n} for n in range(400)]}
    (at / "instances.json").write_text(json.dumps(instances))
    write_world(at / "shards" / "train", 8)
    write_world(at / "shards" / "validation", 4, seed=1)
    write_captions(at / "captions", 24)
    lines = [json.dumps({"image": f"train/{kind}/0.png", "caption": f"a {kind} thing"}) for kind in "ab"]
    (at / "captions.jsonl").write_text("\n".join(lines))
    extract_regions(at / "images", at / "store", str(at / "network"), grid=2, workers=1)
    save_run(at, at / "run")
    write_colours(at / "colours", 12)
    write_pretrained(at / "pretrained", [QUESTION])
    write_files(at / "vqa", [*range(12)])
    return at


@pytest.fixture(scope="module")
def ask(at: Path) -> Iterator[Callable[..., list]]:  # noqa: ARG001 - it skips
    """Runs a command on a disk of a size (see full_disk_commands.py)."""
    script = [sys.executable, "-m", "tests.support.full_disk_commands"]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(*request: object) -> list:
            process.stdin.write(json.dumps(request, default=str) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert isinstance(answer, list), answer["error"]
            return answer

        yield ask
        process.stdin.close()


WORLD = "--videos 2 --seconds 1 --audio 0 --images 2 --scenes 2 --side 32 --audio-seconds 1 --workers 1"
L3NET = (
    "--variant small --width 4 --image-size 16 --batch-size 4 --validation-pairs 4 --steps 4 --workers 0 --device cpu "
    "--resume"
)
FILES = (
    "{at}/vqa/v2_OpenEnded_mscoco_train2014_questions.json --annotations {at}/vqa/v2_mscoco_train2014_annotations.json"
)
COMMANDS = {
    "prepare videos": "prepare videos {at}/videos {out} --workers 1 --backend sequential",
    "prepare pairs": "prepare pairs {at}/images {at}/tones {out} --short-side 36 --workers 1 --backend sequential",
    "prepare regions": "prepare regions {at}/features {out}",
    "prepare boxes": "prepare boxes {at}/instances.json {out}/boxes.jsonl",
    "prepare tokens": "prepare tokens {out} --tokens 4",
    "extract": "extract {at}/images {out} --detector {at}/network --grid 2 --workers 1",
    "embed audio": "embed audio {at}/tones --model {at}/network --out {out} --workers 1 --hop_seconds 0.1",
    "embed image": "embed image {at}/images --model {at}/network --out {out} --workers 1",
    "embed video": "embed video {at}/videos --model {at}/network --out {out} --workers 1",
    "share": "share {at}/network {out}",
    "export": "export {at}/network --to torch --only image --out {out}",
    "synthesize": f"synthesize {{out}} {WORLD}",
    "search": "search {at}/images thing --model {at}/run --index {out} --boxes grid --device cpu --workers 1",
    "convert openl3": "convert openl3 {fixtures}/l3net/h5/openl3_audio_random_seed1.h5.gz {out} "
    "--representation mel256",
    "convert vilbert": "convert vilbert {fixtures}/vilbert/pretrain_vt0/state.safetensors {out} "
    "--original-config {fixtures}/vilbert/pretrain_vt0/config.json",
    "convert detector": "convert detector {fixtures}/detector/x152fpn_small/model.safetensors {out}",
    "train l3net": f"train l3net --data {{at}}/shards --out {{out}} {L3NET}",
    "train vqa": f"train vqa --model {{at}}/pretrained --questions {FILES} --regions {{at}}/colours --out {{out}} "
    "--epochs 1 --batch-size 4 --min-answer-count 1 --workers 0 --device cpu --resume",
}
SLOW = {
    "embed audio",
    "embed image",
    "embed video",
    "export",
    "train l3net",
    "train vqa",
    "synthesize",
    "search",
    "prepare tokens",
    "convert openl3",
}
FRACTIONS = (0.0, 0.4, 0.9)


EVERY_COMMAND = pytest.mark.parametrize(
    "command", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in COMMANDS]
)


def list_words(command: str, at: Path, place: Path) -> tuple[list[str], str]:
    """A command that writes to a disk, and the folder that has to be there before."""
    place.mkdir()
    words = COMMANDS[command].format(at=at, out=place / "out", fixtures=FIXTURES)
    return words.split(), str(at / "store") if command == "prepare tokens" else ""


@EVERY_COMMAND
def test_a_full_disk_is_one_sentence_and_the_same_command_finishes(at: Path, ask, tmp_path: Path, command: str):
    place = tmp_path / "disk"
    words, seed = list_words(command, at, place)
    wanted, used = ask("undisturbed", words, place, seed)
    assert wanted
    for fraction in FRACTIONS:
        first, (status_again, said_again), left, leftovers = ask("full", words, place, seed, int(fraction * used))
        status, said = first
        where = f"room for {fraction:.0%} of {used:,} bytes: {said}"
        errors = [line for line in said.splitlines() if "error: " in line]
        assert status == 1 and "Traceback" not in said and len(errors) == 1, where
        named = SENTENCE.fullmatch(errors[0])
        assert named and named["file"].startswith(f"{place}/out") and not named["file"].endswith(".part"), where
        assert fraction == 0 or Path(named["file"]) != place / "out", where  # a file, once the folder is there
        assert not leftovers, where
        assert status_again == 0, f"{where}\n{said_again}"
        assert left == wanted, where


@EVERY_COMMAND
def test_temporary_files_of_a_killed_command_are_removed_by_the_next(at: Path, ask, tmp_path: Path, command: str):
    """Killed between the last byte of the first file and its renaming: a temporary file is left."""
    place = tmp_path / "disk"
    words, seed = list_words(command, at, place)
    wanted, _ = ask("undisturbed", words, place, seed)
    (status, said), left, leftovers_killed, leftovers = ask("killed", words, place, seed, 1)
    assert leftovers_killed
    assert status == 0 and not leftovers and left == wanted, said


def test_a_disk_with_space_stops_nothing(at: Path, ask, tmp_path: Path):
    """Nothing above would hold if the command were not stopped by the size."""
    words = ["share", str(at / "network"), str(tmp_path / "out")]
    wanted, used = ask("undisturbed", words, tmp_path, "")
    first, _, left, _ = ask("full", words, tmp_path, "", 2 * used)
    assert first[0] == 0 and left == wanted
