"""`evaluate ave` on small videos in the official layout, whose events are seen and heard or damaged on purpose."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from comodal.errors import DataError
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.tasks.clip_events.ave import check_split_classes, evaluate_ave, select_events
from comodal.tasks.clip_events.ave_lists import (
    encode_labels,
    is_official_ave,
    list_classes,
    parse_ave_line,
    read_ave_lists,
)
from comodal.tasks.clip_events.second_embeddings import VideoFile, read_seconds
from comodal.tasks.evaluation.results_card import read_card
from tests.support.event_videos import write_event_video

CPU_OPTIONS = {"device": "cpu", "precision": "fp32"}
# category&video&quality&start&end, as in the official lists
LISTS = {
    "trainSet.txt": ("Church bell&v0&good&0&10", "Church bell&v1&good&2&6", "Bark&v2&good&3&9", "Bark&v3&good&0&5"),
    "valSet.txt": ("Church bell&v4&good&6&8", "Bark&v5&good&1&7"),
    "testSet.txt": (
        "Church bell&v6&good&5&10",
        "Bark&v7&good&2&4",
        "Bark&v1&good&2&6",
        "Bark&damaged&good&0&3",
        "Bark&missing&good&0&3",
    ),
}
LIGHT = {"Church bell": 220, "Bark": 120}
PITCH = {"Church bell": 3000.0, "Bark": 900.0}


def write_event(path: Path, category: str, start: int, end: int, seconds: int = 10) -> Path:
    is_event = [start <= second < end for second in range(seconds)]
    light = [LIGHT[category] if one else 20 for one in is_event]
    return write_event_video(path, light, [PITCH[category] if one else 200.0 for one in is_event])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("AVE_Dataset")
    written: set[str] = set()
    for name, lines in LISTS.items():
        (folder / name).write_text("\n".join(lines) + "\n")
        for line in lines:
            category, video, _, start, end = line.split("&")
            if video == "damaged":
                (folder / "AVE" / "damaged.mp4").write_text("no video")
            elif video not in written and video != "missing":
                write_event(folder / "AVE" / f"{video}.mp4", category, int(start), int(end))
                written.add(video)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    save_model(L3Net(make_small_l3net_config(4, 24)).eval(), folder, {})
    return folder


def test_labels_of_seconds_by_hand():
    """The line of a video of the official list: seconds 6 and 7 have the event. One official event has no second."""
    bell = parse_ave_line("Church bell&MH3m4AwEcRY&good&6&8", "")
    empty = parse_ave_line("Church bell&VWi2ENBuTbw&good&0&0", "")
    bark = parse_ave_line("Bark&x&good&0&10", "")
    classes = list_classes([bell, bark])
    assert classes == ("Bark", "Church bell", "background")
    expected = [[2, 2, 2, 2, 2, 2, 1, 1, 2, 2], [2] * 10, [0] * 10]
    assert encode_labels([bell, empty, bark], classes).tolist() == expected


WRONG_LINES = (
    "Bark&x&good&0",
    "Bark&x&good&a&3",
    "Bark&x&good&5&3",
    "Bark&x&good&0&11",
    "&x&good&0&1",
    "background&x&good&0&1",
)


@pytest.mark.parametrize("line", WRONG_LINES)
def test_lines_of_another_format_are_refused(line: str):
    with pytest.raises(DataError, match="list, line 3"):
        parse_ave_line(line, "list, line 3")


def test_lists_are_read_with_or_without_header(data: Path, tmp_path: Path):
    for name, lines in LISTS.items():
        (tmp_path / name).write_text("\n".join(("Category&VideoID&Quality&StartTime&EndTime", *lines, "")))
    events = read_ave_lists(tmp_path)
    assert events == read_ave_lists(data)
    assert [len(part) for part in events.values()] == [4, 2, 5]
    assert not is_official_ave(events)
    (tmp_path / "testSet.txt").write_text("Meow&v8&good&0&3\n")
    with pytest.raises(DataError, match=r"testSet\.txt: 'Meow' is not in trainSet\.txt"):
        read_ave_lists(tmp_path)


def measure_pitch(audio: np.ndarray, sample_rate: int) -> float:
    return float(np.abs(np.fft.rfft(audio)).argmax() * sample_rate / len(audio))


def check_seconds(path: Path, light: Sequence[int], hertz: Sequence[float], seconds: int = 10) -> bool:
    network = L3Net(make_small_l3net_config(4, 24))
    found = read_seconds(VideoFile(path), network, seconds)
    assert found.image.shape == (seconds, 3, 24, 24)
    for second, (level, pitch) in enumerate(zip(light, hertz, strict=False)):
        assert found.image[second].float().mean() == pytest.approx(level, abs=6), second
        middle = found.audio[second, 4000:-4000].numpy()  # AAC smears the edges
        assert measure_pitch(middle, network.config.sample_rate) == pytest.approx(pitch, abs=15), second
    assert not found.audio[len(light) + 1 :].any()
    return found.is_padded


def test_each_second_has_its_own_frame_and_audio(tmp_path: Path):
    light, hertz = [20 * second + 30 for second in range(10)], [400.0 + 300 * second for second in range(10)]
    assert not check_seconds(write_event_video(tmp_path / "long.mp4", light, hertz), light, hertz)
    assert check_seconds(write_event_video(tmp_path / "short.mp4", light[:4], hertz[:4]), light[:4], hertz[:4])


def test_events_that_are_seen_and_heard_are_classified(data: Path, model: Path, tmp_path: Path):
    found = evaluate_ave(model, data, out=tmp_path, **CPU_OPTIONS)
    assert found["ave.items"] == 30
    assert found["ave.chance_level"] == pytest.approx(19 / 30)  # background: 5, 8 and 6 of ten seconds
    for system in ("trained", "image", "audio"):  # v1 is labeled Church bell in training and Bark in the test
        assert 0.8 <= found[f"ave.{system}"] <= 26 / 30
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text().splitlines()))
    assert [row["truth"] for row in rows[:10]] == ["background"] * 5 + ["Church bell"] * 5
    card = read_card(tmp_path / "card.json")
    assert card["counts"]["test videos that are also in the training list"] == 1
    assert (card["counts"]["items"], card["counts"]["predicted"]) == (50, 30)
    assert card["counts"]["video is missing or cannot be read, events"] == 2
    assert card["split"] == "test list, not the official"
    assert set(card["files"]) == {"train", "validation", "test"}


def test_a_category_without_a_video_is_refused(data: Path):
    events = read_ave_lists(data)
    classes, rows = list_classes(events["train"]), {f"v{number}": number for number in range(6)}
    splits = {split: select_events(part, rows, classes) for split, part in events.items()}
    with pytest.raises(DataError, match=r"testSet\.txt: no video of the category 'Church bell'"):
        check_split_classes(data, events, splits)
