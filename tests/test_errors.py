"""The boundary around the work on one file."""

import errno
import os

import pytest

from comodal.errors import UNEXPECTED_ERROR, CheckpointError, MediaError, wrap_item_errors


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad\nvalue"),
        RuntimeError("x" * 5000),
        RecursionError(),
        KeyError("k"),
        AssertionError(),
        OSError(5, "io"),
    ],
)
def test_whatever_a_decoder_raises_is_told_with_the_name_of_the_file(error: Exception, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("COMODAL_DEBUG", raising=False)
    with pytest.raises(MediaError) as caught, wrap_item_errors("folder/a.wav"):
        raise error
    assert (caught.value.path, caught.value.reason) == ("folder/a.wav", UNEXPECTED_ERROR)
    assert caught.value.detail.startswith(type(error).__name__)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "error",
    [
        MediaError("a.wav", "truncated", "half of it"),
        CheckpointError("model: damaged"),
        MemoryError(),
        KeyboardInterrupt(),
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    ],
)
def test_what_is_not_the_fault_of_the_file_is_passed_on(error: BaseException):
    with pytest.raises(type(error)) as caught, wrap_item_errors("a.wav"):
        raise error
    assert caught.value is error
