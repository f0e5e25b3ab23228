"""Members of tar shards are read where they lie, whatever the archive holds: the same media, and all damage told."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from comodal.errors import MediaError
from comodal.media.audio import read_audio
from comodal.media.image import read_image
from comodal.media.storage.archive_samples import ArchiveSample
from comodal.media.storage.open_media import open_media
from comodal.media.storage.path_patterns import expand_braces, expand_pattern, is_path_pattern
from comodal.media.storage.tar_shard import TarShard
from comodal.media.video import read_clip
from tests.support.container_files import img2dataset, jpeg, write_tar
from tests.support.make_media import make_tone, make_video

BLOCK = 512


def examples(path: Path) -> list[ArchiveSample]:
    return list(TarShard(path).iterate_examples())


def good_keys(path: Path) -> list[str]:
    return [one.key for one in examples(path) if one.fault is None]


def faults(path: Path) -> list[tuple[str, str]]:
    return [(one.key, one.fault.reason) for one in examples(path) if one.fault is not None]


def test_a_clip_a_sound_and_a_picture_are_those_of_the_files(tmp_path: Path):
    video, tone = make_video(tmp_path / "a.mp4", seconds=1.5), make_tone(tmp_path / "b.wav", 0.7)
    (tmp_path / "c.png").write_bytes(jpeg(3))
    files = [video, tone, tmp_path / "c.png"]
    tar = write_tar(tmp_path / "deep" / "00000.tar", {f"x/{path.name}": path.read_bytes() for path in files})
    inside = [tar / "x" / path.name for path in files]
    ours, theirs = (read_clip(path, short_side=32) for path in (inside[0], video))
    assert ours.frames == theirs.frames
    assert np.array_equal(ours.audio, theirs.audio)
    assert np.array_equal(read_audio(inside[1]), read_audio(tone))
    assert np.array_equal(read_image(inside[2]), read_image(files[2]))
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["00000.tar", "a.mp4", "b.wav", "c.png", "deep"]


def test_a_member_that_is_not_there_is_missing(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", {"a.jpg": jpeg(0)})
    with pytest.raises(MediaError, match=r"a\.tar/b\.jpg") as caught:
        read_image(tar / "b.jpg")
    assert caught.value.reason == "missing"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_examples_are_those_of_the_webdataset_library(tmp_path: Path, format: int):
    """Long names, names in Greek, several endings, in all formats of tar."""
    members = {f"{'long/' * 12}{n:06d}.{ending}": bytes([n]) * 5 for n in range(4) for ending in ("jpg", "depth.png")}
    if format != tarfile.USTAR_FORMAT:
        members |= {f"{'x' * 200}/{n}.wav": b"RIFF" for n in range(2)} | {"αβγ.mp4": b"video"}
    tar = write_tar(tmp_path / "a.tar", members, format)
    theirs = list(webdataset.WebDataset(str(tar), shardshuffle=False, empty_check=False))
    found = examples(tar)
    assert [one.key for one in found] == [one["__key__"] for one in theirs]
    for one, other in zip(found, theirs, strict=True):
        for name, place in one.members.values():
            ending = name.removeprefix(one.key).lstrip(".")
            with TarShard(tar).open_member(place) as file:
                assert file.read() == other[ending]
        if "jpg" in other:
            assert one.members["image"][0].endswith(".jpg")  # not the depth


def test_names_that_leave_the_folder_stay_names(tmp_path: Path):
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(jpeg(1))
    names = ["../secret.jpg", str(secret.absolute()), "./a.jpg", "b/../../../c.jpg", "..\\d.jpg"]
    tar = write_tar(tmp_path / "in" / "a.tar", [(name, jpeg(n + 2)) for n, name in enumerate(names)])
    found = [one.members["image"][0] for one in examples(tar)]
    assert found == ["secret.jpg", str(secret.absolute())[1:], "a.jpg", "b/c.jpg", "d.jpg"]
    for number, name in enumerate(found):
        with open_media(tar / name) as file:
            assert file.read() == jpeg(number + 2)


def test_links_are_no_files(tmp_path: Path):
    target = tmp_path / "secret.jpg"
    target.write_bytes(jpeg(1))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE)):
            header = tarfile.TarInfo(f"{number}.jpg")
            header.type, header.linkname = kind, str(target)
            tar.addfile(header)
        header = tarfile.TarInfo("2.jpg")
        header.type = tarfile.FIFOTYPE
        tar.addfile(header)
        header = tarfile.TarInfo("3.jpg")
        header.size = 4
        tar.addfile(header, io.BytesIO(b"1234"))
    assert faults(tmp_path / "a.tar") == [("0", "not a file"), ("1", "not a file")]
    assert good_keys(tmp_path / "a.tar") == ["3"]


def test_a_truncated_tar_is_read_to_its_end(tmp_path: Path):
    whole = img2dataset(tmp_path / "whole.tar", 5).read_bytes()
    starts = {}
    with tarfile.open(tmp_path / "whole.tar") as tar:
        starts = {member.name: (member.offset, member.offset_data, member.size) for member in tar}
    cut = tmp_path / "cut.tar"
    _, data, size = starts["whole0003.jpg"]
    cut.write_bytes(whole[: data + size // 2])
    assert good_keys(cut) == ["whole0000", "whole0001", "whole0002"]
    (fault,) = [one for one in examples(cut) if one.fault is not None]
    assert (fault.key, fault.fault.reason) == ("whole0003", "truncated")  # type: ignore[union-attr]
    assert f"{data + size // 2:,}" in fault.fault.detail  # type: ignore[union-attr]
    header, _, _ = starts["whole0003.jpg"]
    for length in (header, header + 100):  # between two members, and inside a header
        cut.write_bytes(whole[:length])
        assert good_keys(cut) == ["whole0000", "whole0001", "whole0002"]
        assert faults(cut) == [("", "truncated")]


def test_a_damaged_header_costs_its_member(tmp_path: Path):
    path = img2dataset(tmp_path / "a.tar", 4)
    with tarfile.open(path) as tar:
        at = tar.getmember("a0001.jpg").offset
    data = bytearray(path.read_bytes())
    data[at + 10] ^= 0xFF
    path.write_bytes(data)
    found = {one.key: one for one in examples(path)}
    assert [key for key, one in found.items() if one.fault is None and "image" in one.members] == [
        "a0000", "a0002", "a0003",
    ]  # fmt: skip
    assert f"bytes {at:,} to" in found[""].fault.detail  # type: ignore[union-attr]
    with tarfile.open(path) as tar:  # which ends there, and says nothing
        assert tar.getnames() == ["a0000.jpg", "a0000.txt", "a0000.json"]


def test_damaged_json_costs_its_example_and_large_text_is_not_read(tmp_path: Path):
    members = {"a.jpg": jpeg(0), "a.json": b'{"caption": ', "b.jpg": jpeg(1), "b.txt": b"x" * ((1 << 20) + 1)}
    members |= {"c.jpg": jpeg(2), "c.json": b"[" * 100_000, "d.jpg": jpeg(3), "d.txt": b"\xff\xfe", "e.jpg": jpeg(4)}
    tar = write_tar(tmp_path / "a.tar", members)
    assert faults(tar) == [("a", "damaged"), ("b", "too large"), ("c", "damaged"), ("d", "damaged")]
    assert good_keys(tar) == ["e"]


def test_a_key_that_stands_twice_is_named(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", [("a.jpg", jpeg(0)), ("b.jpg", jpeg(1)), ("a.jpg", jpeg(2)), ("a.txt", b"A")])
    assert good_keys(tar) == ["a", "b"]
    assert faults(tar) == [("a.jpg", "key twice")]
    with open_media(tar / "a.jpg") as file:
        assert file.read() == jpeg(0)


@pytest.mark.parametrize("data", [b"", b"\0" * 10240, b"no archive" * 1000, b"\x1f\x8b" + b"\0" * 600])
def test_what_is_no_tar_is_told(tmp_path: Path, data: bytes):
    path = tmp_path / "a.tar"
    path.write_bytes(data)
    assert good_keys(path) == []
    assert faults(path) == [("", "compressed" if data[:1] == b"\x1f" else "no members")]


def test_an_extended_header_of_gigabytes_is_not_read(tmp_path: Path):
    header = tarfile.TarInfo("././@LongLink")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 1 << 34
    path = tmp_path / "a.tar"
    good = write_tar(tmp_path / "good.tar", {"a.jpg": jpeg(0)}).read_bytes()
    path.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + good)
    assert faults(path)[0] == ("", "damaged")
    assert good_keys(path) == ["a"]


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path):
    """`cat a.tar b.tar`, where `tarfile` and `tar` stop at the end of the first."""
    both = img2dataset(tmp_path / "a.tar", 2).read_bytes() + img2dataset(tmp_path / "b.tar", 2).read_bytes()
    (tmp_path / "both.tar").write_bytes(both)
    assert good_keys(tmp_path / "both.tar") == ["a0000", "a0001", "b0000", "b0001"]
    assert faults(tmp_path / "both.tar") == []


def test_whatever_is_damaged_the_rest_is_as_it_was(tmp_path: Path):
    """Bytes changed, cut out or put in at 300 places: no exception, and no member with another one's bytes."""
    whole = img2dataset(tmp_path / "a.tar", 6).read_bytes()
    pictures = {f"a{n:04d}.jpg": jpeg(n) for n in range(6)}
    rng, path = np.random.default_rng(0), tmp_path / "damaged.tar"
    for _ in range(300):
        at, data = int(rng.integers(len(whole))), bytearray(whole)
        kind = rng.integers(3)
        if kind == 0:
            data[at] ^= int(rng.integers(1, 255))
        else:
            data[at : at + (BLOCK if kind == 1 else 0)] = bytes(rng.integers(0, 255, int(rng.integers(700)), np.uint8))
        path.write_bytes(data)
        intact = 0
        for one in examples(path):
            if one.fault is None and "image" in one.members:
                with TarShard(path).open_member(one.members["image"][1]) as file:
                    intact += file.read() == pictures.get(one.members["image"][0])
        assert intact >= 4 - (kind != 0 and at % BLOCK > 0) * 6  # shifted blocks cannot be found again


def test_patterns_name_files_as_the_shell_does(tmp_path: Path):
    assert list(expand_braces("{008..011}-{a,b}")) == [f"{n:03d}-{x}" for n in range(8, 12) for x in "ab"]
    assert list(expand_braces("{8..11}")) == ["8", "9", "10", "11"]
    for name in ("a/00000.tar", "a/00001.tar", "a/x.txt", "b/00000.tar"):
        write_tar(tmp_path / name, {"a.jpg": jpeg(0)})
    assert expand_pattern(tmp_path / "a" / "{00000..00002}.tar") == (tmp_path / "a", [f"0000{n}.tar" for n in range(3)])
    assert expand_pattern(tmp_path / "*" / "*.tar") == (tmp_path, ["a/00000.tar", "a/00001.tar", "b/00000.tar"])
    odd = tmp_path / "[1]*.tar"
    odd.write_bytes(b"")
    assert not is_path_pattern(odd)  # it is there under this very name


def test_reading_holds_no_file_open(tmp_path: Path):
    tar = write_tar(tmp_path / "a.tar", {f"{n}.jpg": jpeg(n) for n in range(5)})
    held = Path("/proc/self/fd")
    if not held.exists():
        pytest.skip("no list of the open files of a process")
    before = len([*held.iterdir()])
    for number in range(5):
        read_image(tar / f"{number}.jpg")
    assert len([*held.iterdir()]) == before
