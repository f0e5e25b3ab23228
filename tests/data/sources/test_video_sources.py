"""Each official list is read as its authors wrote it: lines copied in their layout, worked out by hand."""

from pathlib import Path

import pytest

from comodal.data.sources.kinetics_sounds import KINETICS_SOUNDS
from comodal.data.sources.splits import assign_group_splits, hash_to_fraction, split_by_hash
from comodal.data.sources.video_sources import detect_list_format, read_sources
from comodal.errors import DataError

KINETICS = """label,youtube_id,time_start,time_end,split,is_cc
playing violin,-Qowmc0P9ic,34,44,train,0
"passing American football (in game), fast",0A_b-C4dE.f,10,20,val,1
massaging person's head,zzzzzzzzzzz,1,11,test,0
"""
AUDIOSET = """# Segments csv created Sun Mar  5 10:54:31 2017
# num_ytids=22160, num_segs=22160, num_unique_labels=527, num_positive_labels=52882
# YTID, start_seconds, end_seconds, positive_labels
--4gqARaEJE, 0.000, 10.000, "/m/068hy,/m/07q6cd_,/m/0bt9lr,/m/0jbk"
--BfvyPmVMo, 20.000, 30.000, "/m/03l9g"
"""
FLICKR = """http://www.flickr.com/videos/54321@N00/5853042221/play/orig/0a1b2c3d4e
http://www.flickr.com/videos/12345@N01/6129842010/play/orig/9f8e7d6c5b
"""


def place(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "list.txt"
    path.write_text(text)
    return path


def test_kinetics_names_are_found_in_label_folders_with_spaces_underscores_or_flat(tmp_path):
    files = place(
        tmp_path / "files",
        "train/playing_violin/-Qowmc0P9ic_000034_000044.mp4",
        "train/playing cello/-Qowmc0P9ic_000034_000044.mp4",
        "0A_b-C4dE.f_000010_000020.mp4",
    )
    violin, football, head = read_sources(written(tmp_path, KINETICS), files)
    assert violin.path == "train/playing_violin/-Qowmc0P9ic_000034_000044.mp4"  # not the cello's
    assert (violin.group, violin.labels, violin.split) == ("-Qowmc0P9ic", ("playing violin",), "train")
    assert (violin.key, violin.start_seconds) == ("-Qowmc0P9ic_000034_000044", 0.0)
    assert football.path == "0A_b-C4dE.f_000010_000020.mp4"
    assert (football.labels, football.split) == (("passing American football (in game), fast",), "validation")
    assert (head.missing, head.labels) == (True, ("massaging person's head",))


def test_ids_that_end_in_the_letters_of_a_suffix_stay_whole(tmp_path):
    """`"mp4x4p.mp4".strip(".mp4")` is "x", which happened to others."""
    files = place(tmp_path / "files", "mp4x4pm4p4p_000000_000010.mp4")
    text = "label,youtube_id,time_start,time_end,split\nsinging,mp4x4pm4p4p,0,10,train\n"
    (source,) = read_sources(written(tmp_path, text), files)
    assert (source.group, source.missing) == ("mp4x4pm4p4p", False)


def test_kinetics_test_list_has_no_labels(tmp_path):
    text = "youtube_id,time_start,time_end,split\n---QUuC4vJs,84,94,test\n"
    (source,) = read_sources(written(tmp_path, text), tmp_path)
    assert (source.labels, source.split, source.group) == ((), "test", "---QUuC4vJs")


def test_audioset_ids_with_and_without_times(tmp_path):
    files = place(tmp_path / "files", "--4gqARaEJE_0_10000.mp4", "Y--BfvyPmVMo_000020.wav", "--BfvyPmVMo.mkv")
    first, second = read_sources(written(tmp_path, AUDIOSET), files)
    assert first.path == "--4gqARaEJE_0_10000.mp4"  # milliseconds
    assert first.labels == ("/m/068hy", "/m/07q6cd_", "/m/0bt9lr", "/m/0jbk")
    assert (first.key, first.split) == ("--4gqARaEJE_000000_000010", None)
    assert (second.path, second.start_seconds) == ("Y--BfvyPmVMo_000020.wav", 0.0)
    (files / "Y--BfvyPmVMo_000020.wav").unlink()
    second = read_sources(written(tmp_path, AUDIOSET), files)[1]
    assert (second.path, second.start_seconds, second.clip_seconds) == ("--BfvyPmVMo.mkv", 20.0, 10.0)


def test_flickr_soundnet_files_are_named_by_the_photo_id(tmp_path):
    files = place(tmp_path / "files", "videos/5853042221.mp4")
    found, dead = read_sources(written(tmp_path, FLICKR), files)
    assert (found.path, found.key, found.group) == ("videos/5853042221.mp4", "5853042221", "5853042221")
    assert (dead.missing, dead.path) == (True, "6129842010")


def test_json_lines(tmp_path):
    place(tmp_path, "a/b.mp4")
    text = '{"path": "a/b.mp4", "label": "dog", "group": "g", "split": "val", "key": "k"}\n\n{"path": "c.mp4"}\n'
    first, second = read_sources(written(tmp_path, text))
    assert (first.key, first.labels, first.group, first.split, first.missing) == (
        "k",
        ("dog",),
        "g",
        "validation",
        False,
    )
    assert (second.key, second.group, second.missing) == ("c", "c.mp4", True)


@pytest.mark.parametrize("line", ['{"label": "dog"}', "{not json", '{"path": "a", "split": "dev"}', '{"path": 3}'])
def test_a_wrong_line_of_json_is_named(tmp_path, line):
    with pytest.raises(DataError, match=r"list\.txt, line 2"):
        read_sources(written(tmp_path, '{"path": "c.mp4"}\n' + line))


def test_a_folder_gives_every_file_with_its_split_and_label(tmp_path):
    place(
        tmp_path, "train/dog/-Qowmc0P9ic_000034_000044.mp4", "Val/dog/b.mkv", "loose.avi", "notes/.hidden", "a.b.json"
    )
    sources = {source.path: source for source in read_sources(tmp_path)}
    assert sorted(sources) == [
        "Val/dog/b.mkv", "a.b.json", "loose.avi", "notes/.hidden", "train/dog/-Qowmc0P9ic_000034_000044.mp4",
    ]  # fmt: skip
    clip = sources["train/dog/-Qowmc0P9ic_000034_000044.mp4"]
    assert (clip.split, clip.labels, clip.group) == ("train", ("dog",), "-Qowmc0P9ic")
    assert sources["Val/dog/b.mkv"].split == "validation"
    assert (sources["loose.avi"].split, sources["loose.avi"].labels) == (None, ())


def test_a_link_that_goes_round_is_walked_once(tmp_path):
    place(tmp_path, "a/video.mp4")
    (tmp_path / "a" / "round").symlink_to(tmp_path)
    assert [source.path for source in read_sources(tmp_path)] == ["a/video.mp4"]


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="there is no such folder or list"):
        read_sources(tmp_path / "none")
    with pytest.raises(DataError, match=r"unknown list format.*It begins with 'name;size'"):
        read_sources(written(tmp_path, "name;size\n"))
    with pytest.raises(DataError, match="not a list in the format kinetics"):
        read_sources(written(tmp_path, "a,b\n1,2\n"), list_format="kinetics")
    with pytest.raises(DataError, match="no such folder to hold the files"):
        read_sources(written(tmp_path, KINETICS), tmp_path / "none")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="is not text"):
        read_sources(tmp_path / "binary")

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", forbidden)
    with pytest.raises(DataError, match="Permission denied"):
        read_sources(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind"),
    [(KINETICS, "kinetics"), (AUDIOSET, "audioset"), (FLICKR, "flickr-soundnet"), ('{"path":1}', "jsonl")],
)
def test_formats_are_recognised_from_their_content(text, kind):
    assert detect_list_format(Path("list"), text) == kind


def test_kinetics_sounds_has_34_classes_of_which_31_are_in_kinetics_400():
    """Later papers, which start from Kinetics-400, count 31."""
    assert len(KINETICS_SOUNDS) == 34
    assert len({name for name in KINETICS_SOUNDS.values() if name}) == 31
    assert KINETICS_SOUNDS["mowing the lawn by pushing lawnmower"] == "mowing lawn"


def test_a_hash_splits_in_the_given_proportions_and_keeps_its_mind():
    splits = [split_by_hash(f"video {n}", 0.1, 0.2) for n in range(10_000)]
    assert abs(splits.count("validation") - 1000) < 3 * 30  # three standard deviations of a binomial
    assert abs(splits.count("test") - 2000) < 3 * 40
    assert split_by_hash("anything", 0.0, 0.0) == "train"
    assert hash_to_fraction("abc") == 0xBA7816BF8F01CFEA / 2**64  # the example digest of FIPS 180-2


def test_a_video_that_the_list_puts_into_two_splits_is_held_out(tmp_path):
    text = "label,youtube_id,time_start,time_end,split\n"
    rows = ["x,aaaaaaaaaaa,0,10,train", "x,aaaaaaaaaaa,10,20,test", "x,bbbbbbbbbbb,0,10,val", "x,ccccccccccc,0,10,"]
    sources = read_sources(written(tmp_path, text + "\n".join(rows)), tmp_path)
    splits = assign_group_splits(sources, 0.0, 0.0)
    assert splits == {"aaaaaaaaaaa": "test", "bbbbbbbbbbb": "validation", "ccccccccccc": "train"}
