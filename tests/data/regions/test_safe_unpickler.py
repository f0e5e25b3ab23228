"""Pickles are read without running anything: what numpy wrote comes back, what could run code is named and refused."""

import collections
import contextlib
import os
import pickle
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from comodal.data.regions.safe_unpickler import ALLOWED_GLOBALS, RefusedPickleError, load_npy, load_pickle
from comodal.errors import DataError

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


class Harmful:
    """What runs when it is unpickled without care."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@given(VALUES, st.integers(0, 5))
def test_plain_values_come_back(value, protocol):
    assert load_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(6))
@given(arrays.arrays(st.sampled_from(["<f4", ">f4", "<f8", "|u1", "<i8", "?", "<U3", "|S4"]), (3, 2)))
def test_arrays_come_back_as_numpy_wrote_them(protocol, array):
    found = load_pickle(pickle.dumps({"a": array, "b": [array.T]}, protocol))
    np.testing.assert_array_equal(found["a"], array)
    np.testing.assert_array_equal(found["b"][0], array.T)
    assert found["a"].dtype == array.dtype


@pytest.mark.parametrize("protocol", range(6))
def test_numbers_and_ordered_rows_come_back(protocol):
    row = collections.OrderedDict(
        [("w", np.float32(3.5)), ("n", np.int64(7)), ("o", np.array([{"x": 1}, None], object))]
    )
    found = load_pickle(pickle.dumps(row, protocol))
    assert (found["w"], found["n"]) == (3.5, 7)
    assert found["o"].tolist() == [{"x": 1}, None]


def test_the_name_that_modules_had_before_numpy_2_is_known():
    data = pickle.dumps(np.arange(3.0), 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core.multiarray" in data
    assert load_pickle(data).tolist() == [0, 1, 2]


@pytest.mark.parametrize("function", [os.system, eval, exec, subprocess.check_output, __import__, getattr, open])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"features": x}, lambda x: np.array([x], object)])
def test_whatever_runs_code_is_refused_by_name_and_not_run(tmp_path: Path, function, wrap):
    marker = tmp_path / "was_run"
    data = pickle.dumps(wrap(Harmful(function, f"touch {marker}")))
    with pytest.raises(RefusedPickleError, match=rf"{function.__name__}|getattr"):
        load_pickle(data)
    assert not marker.exists()


def test_numpy_itself_cannot_be_called():
    for harmful in (
        Harmful(np.ndarray, (10**12,)),
        Harmful(np.fromfile, "/etc/passwd"),
        Harmful(np.load, "/etc/passwd"),
    ):
        with pytest.raises(DataError):
            load_pickle(pickle.dumps(harmful))


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_of_lists_stay_arrays_of_lists(protocol):
    ragged = np.empty(2, object)
    ragged[0], ragged[1] = [1, 2], [np.eye(2), 4]
    found = load_pickle(pickle.dumps(ragged, protocol))
    assert (found.shape, found[0], found[1][1]) == ((2,), [1, 2], 4)
    np.testing.assert_array_equal(found[1][0], np.eye(2))


def test_what_python_2_wrote_comes_back():
    """There an array's bytes, and every str, are short strings of bytes."""
    data = struct.pack("<3f", 1.0, -2.0, 0.5)
    text = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85"
    text += b"cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
    text += b"U" + bytes([len(data)]) + data + b"tb."
    assert load_pickle(text).tolist() == [1.0, -2.0, 0.5]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"cnumpy\nndarray\n(I1\ntR.", id="call of ndarray"),
        pytest.param(b"c_codecs\nencode\n(Va\nVzip\ntR.", id="another codec"),
        pytest.param(b"c__builtin__\nbytes\n(I99999999999\ntR.", id="many bytes"),
        pytest.param(b"c_codecs\nencode\n(N}Vfunction\nNstb.", id="state of a function"),
        pytest.param(b"cnumpy\ndtype\n(N}Vreal\nNstb.", id="state of a class"),
        pytest.param(b"cnumpy\ndtype\n.", id="a bare function"),
        pytest.param(b"\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.", id="an attribute"),
        pytest.param(b"\x80\x02]q\x00h\x00a.", id="a list within itself"),
        pytest.param(b"\x80\x04\x8f.", id="a set"),
        pytest.param(b"Pelsewhere\n.", id="an object from elsewhere"),
        pytest.param(b"\x80\x02\x82\x01.", id="a registered extension"),
        pytest.param(b"]" * 100_000 + b"a" * 99_999 + b".", id="nested deeply"),
    ],
)
def test_nothing_else_can_be_done(text):
    before = {name: allowed.function for name, allowed in ALLOWED_GLOBALS.items()}
    with pytest.raises(DataError):
        load_pickle(text)
    assert {name: allowed.function for name, allowed in ALLOWED_GLOBALS.items()} == before


def test_a_pickle_does_not_reach_numpys_own_state():
    """numpy trusts the state that it is given, and would take these eight letters for pointers."""
    text = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntVb\ntR(I1\n(I8\ntcnumpy\ndtype\n(VO8\ntR"
    text += b"(I3\nV|\nNNNI8\nI8\nI0\ntbI00\nVAAAAAAAA\ntb."
    with contextlib.suppress(DataError):
        assert load_pickle(text).tolist() == ["A"] * 8


def test_what_stands_in_two_places_is_made_once():
    """Thirty lists, each twice in the next: a billion values if they were unfolded."""
    value = [1]
    for _ in range(30):
        value = [value, value]
    found = load_pickle(pickle.dumps(value))
    for _ in range(30):
        assert found[0] is found[1]
        found = found[0]
    assert found == [1]


@given(st.data())
def test_damaged_pickles_end_in_one_kind_of_error(data):
    whole = bytearray(pickle.dumps({"a": np.arange(6.0).reshape(2, 3), "b": ["x", 1, None]}, 4))
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DataError):
        load_pickle(bytes(whole[: data.draw(st.integers(1, len(whole)))]))


def test_npy_files_of_numbers_and_of_dictionaries(tmp_path: Path):
    np.save(tmp_path / "numbers.npy", np.eye(3))
    np.save(tmp_path / "record.npy", {"features": np.eye(2)}, allow_pickle=True)
    np.save(tmp_path / "harm.npy", np.array([Harmful(os.system, f"touch {tmp_path}/run")], object), allow_pickle=True)
    assert load_npy(tmp_path / "numbers.npy").tolist() == np.eye(3).tolist()
    assert load_npy(tmp_path / "record.npy")["features"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(RefusedPickleError, match=r"harm.npy: refused: it references .*system"):
        load_npy(tmp_path / "harm.npy")
    assert not (tmp_path / "run").exists()
    (tmp_path / "half.npy").write_bytes((tmp_path / "record.npy").read_bytes()[:-20])
    with pytest.raises(DataError, match=r"an incomplete or damaged \.npy file"):
        load_npy(tmp_path / "half.npy")
    header = b"(" * 117 + b"\n"
    (tmp_path / "header.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises(DataError, match=r"an incomplete or damaged \.npy file"):
        load_npy(tmp_path / "header.npy")
    with pytest.raises(DataError, match="No such file"):
        load_npy(tmp_path / "none.npy")
