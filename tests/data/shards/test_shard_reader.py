"""Shards read what was written, by three readers; damage anywhere is found, never read."""

import gc
import io
import json
import multiprocessing
import pickle
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comodal.data.shards.shard_reader import ShardReader, ShardWriter
from comodal.errors import DataError

KEYS = st.text(
    st.characters(blacklist_characters="./\n\0", blacklist_categories=("Cs", "Cc")), min_size=1, max_size=120
)
MEMBERS = st.dictionaries(
    st.sampled_from(["0000.jpg", "0001.jpg", "flac", "txt"]), st.binary(max_size=1500), max_size=4
)
SAMPLES = st.dictionaries(KEYS, MEMBERS, min_size=1, max_size=6)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write(folder: Path, samples: dict[str, dict[str, bytes]], name: str = "000000.tar") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    with ShardWriter(folder / name) as shard:
        for n, (key, members) in enumerate(samples.items()):
            shard.write(key, members, {"number": n, "group": f"video {n // 2}"})
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "train", {f"clip{n}": {"0000.jpg": bytes([n]) * 600, "flac": b"sound"} for n in range(5)})


def test_keys_one_by_one_are_the_lines_of_every_shard(tmp_path):
    keys = ["a", "ü" * 30, "日本語", "clip 1", "\x85", "\u2028"]
    write(tmp_path, {key: {"txt": b"1"} for key in keys}, "000000.tar")
    write(tmp_path, {key: {} for key in reversed(keys)}, "000001.tar")
    write(tmp_path, {"only": {}}, "000002.tar")
    shards = ShardReader(tmp_path)
    plain = [key for index in shards.indexes for key in index.keys.decode().split("\n")]
    assert [shards.get_key(i) for i in range(len(shards))] == plain == [*keys, *reversed(keys), "only"]


@FEW
@given(samples=SAMPLES)
def test_every_member_is_read_as_python_s_tar_reader_reads_it(tmp_path_factory, samples):
    folder = write(tmp_path_factory.mktemp("shards"), samples)
    shards = ShardReader(folder)
    with tarfile.open(folder / "000000.tar") as tar:
        theirs = {member.name: tar.extractfile(member).read() for member in tar}
    ours = {
        f"{key}.{name}": shards.read_member(i, name)
        for i, key in enumerate(shards.keys)
        for name in shards.list_members(i)
    }
    assert ours == theirs
    assert shards.keys == list(samples)
    assert [shards.get_key(i) for i in range(len(shards))] == list(samples)
    assert {key: {name: shards.read_member(i, name) for name in shards.list_members(i) if name != "json"}
            for i, key in enumerate(shards.keys)} == samples  # fmt: skip
    assert [shards.read_record(i)["number"] for i in range(len(shards))] == list(range(len(samples)))
    assert shards.groups == [f"video {n // 2}" for n in range(len(samples))]


@FEW
@given(where=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_index_is_found_when_the_folder_is_opened(folder, where, bit):
    index = folder / "000000.index"
    whole = index.read_bytes()
    where %= len(whole)
    index.write_bytes(whole[:where] + bytes([whole[where] ^ (1 << bit)]) + whole[where + 1 :])
    try:
        with pytest.raises(DataError, match=r"000000\.index is damaged.*run the same prepare command"):
            ShardReader(folder)
    finally:
        index.write_bytes(whole)


@FEW
@given(length=st.integers(0, 10**9))
def test_an_index_cut_short_is_found_when_the_folder_is_opened(folder, length):
    index = folder / "000000.index"
    whole = index.read_bytes()
    index.write_bytes(whole[: length % len(whole)])
    try:
        with pytest.raises(DataError, match="is damaged"):
            ShardReader(folder)
    finally:
        index.write_bytes(whole)


def test_a_flipped_byte_of_a_member_is_found_when_it_is_read(folder):
    tar = folder / "000000.tar"
    data = bytearray(tar.read_bytes())
    data[data.index(bytes([3]) * 600) + 5] ^= 1
    tar.write_bytes(data)
    shards = ShardReader(folder)
    assert shards.read_member(2, "0000.jpg") == bytes([2]) * 600
    with pytest.raises(
        DataError, match=r"000000\.tar is damaged: 0000\.jpg of clip3 does not match its checksum.*Delete"
    ):
        shards.read_member(3, "0000.jpg")


def test_a_missing_or_shortened_tar_is_found_when_the_folder_is_opened(folder):
    tar = folder / "000000.tar"
    data = tar.read_bytes()
    tar.write_bytes(data[:-1])
    with pytest.raises(DataError, match=f"has {len(data) - 1:,} bytes instead of {len(data):,}"):
        ShardReader(folder)
    tar.unlink()
    with pytest.raises(DataError, match="No such file"):
        ShardReader(folder)


def test_what_is_not_there_is_said(folder, tmp_path):
    with pytest.raises(DataError, match="has no shards"):
        ShardReader(tmp_path / "none")
    shards = ShardReader(folder)
    with pytest.raises(DataError, match=r"clip1 has no 0007\.jpg, only 0000\.jpg, flac, json"):
        shards.read_member(1, "0007.jpg")
    with pytest.raises(IndexError):
        shards.read_member(5, "flac")
    (tmp_path / "about.json").write_text(json.dumps({"finished": False}))
    with pytest.raises(DataError, match="is not finished"):
        ShardReader(folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the file open
def test_the_webdataset_library_and_tar_read_a_shard(folder, tmp_path):
    samples = list(webdataset.WebDataset(str(folder / "000000.tar"), shardshuffle=False))
    gc.collect()
    assert [sample["__key__"] for sample in samples] == [f"clip{n}" for n in range(5)]
    assert samples[4]["0000.jpg"] == bytes([4]) * 600
    assert json.loads(samples[4]["json"])["number"] == 4
    subprocess.run(["tar", "xf", folder / "000000.tar", "-C", tmp_path], check=True)
    assert (tmp_path / "clip4.flac").read_bytes() == b"sound"


def test_the_same_samples_give_the_same_bytes_and_another_byte_another_fingerprint(tmp_path):
    first, second = (write(tmp_path / name, {"a": {"flac": b"one"}}) for name in "ab")
    assert [p.read_bytes() for p in sorted(first.iterdir())] == [p.read_bytes() for p in sorted(second.iterdir())]
    assert ShardReader(first).fingerprint == ShardReader(second).fingerprint
    third = write(tmp_path / "c", {"a": {"flac": b"onf"}})
    assert ShardReader(first).fingerprint != ShardReader(third).fingerprint


def test_several_shards_follow_each_other(folder):
    write(folder, {"later": {"flac": b"x"}}, "000001.tar")
    shards = ShardReader(folder)
    assert len(shards) == 6
    assert (shards.get_key(5), shards.read_member(5, "flac")) == ("later", b"x")


def read_all(shards: ShardReader) -> list[bytes]:
    return [shards.read_member(i, "0000.jpg") for i in range(len(shards))]


def test_forked_and_spawned_workers_and_threads_read_the_same(folder):
    shards = ShardReader(folder)
    expected = read_all(shards)  # opens the files before the fork
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(read_all, (shards,)) == expected
    assert read_all(pickle.loads(pickle.dumps(shards))) == expected
    with ThreadPoolExecutor(8) as threads:
        assert all(result == expected for result in threads.map(read_all, [shards] * 50))


def test_nothing_stands_under_the_name_until_the_shard_is_whole(tmp_path):
    class Killed(BaseException):
        pass

    with pytest.raises(Killed), ShardWriter(tmp_path / "000000.tar") as shard:
        shard.write("a", {"flac": b"x"}, {})
        assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []
        raise Killed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["", "a.b", "a/b", "a\nb", "twice"])
def test_a_key_that_webdataset_would_misread_is_refused(tmp_path, key):
    with ShardWriter(tmp_path / "000000.tar") as shard:
        shard.write("twice", {"flac": io.BytesIO(b"x").getvalue()}, {})
        with pytest.raises(ValueError, match="a key is unique"):
            shard.write(key, {}, {})
