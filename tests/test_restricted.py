"""Pickles are read without running anything: what numpy wrote comes back, what could run code is named and refused."""

import collections
import contextlib
import os
import pickle
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from comodal.data.restricted import RefusedPickleError, load_npy, load_pickle
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
    with pytest.raises(RefusedPickleError, match=r"harm.npy: refused: it asks for .*system"):
        load_npy(tmp_path / "harm.npy")
    assert not (tmp_path / "run").exists()
    (tmp_path / "half.npy").write_bytes((tmp_path / "record.npy").read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole"):
        load_npy(tmp_path / "half.npy")
    with pytest.raises(DataError, match="No such file"):
        load_npy(tmp_path / "none.npy")
