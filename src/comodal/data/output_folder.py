"""The output folder of a command: a lock, a check that the options are the same, and readable errors."""

import contextlib
import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from comodal.errors import DataError
from comodal.files import describe_os_error
from comodal.text_files import read_json_object


@contextlib.contextmanager
def lock_output_folder(out: Path) -> Iterator[None]:
    """Hold the lock of OUT; the system releases it when the process ends, however it ends."""
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file, not a folder")
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another command is writing to {out}: wait until it ends") from error
        yield


@contextlib.contextmanager
def translate_os_errors(out: Path) -> Iterator[None]:
    """Convert an OSError to an error with a readable message."""
    try:
        yield
    except OSError as error:
        prefix = "" if error.filename else f"{out}: "
        raise DataError(f"{prefix}{describe_os_error(error)}") from error


def check_same_options(out: Path, new_settings: dict[str, Any]) -> bool:
    """Check that OUT was started with the same options on the same files; returns whether it is finished.

    Raises:
        DataError: It was not; the message lists the changes.
    """
    about = out / "about.json"
    if not about.is_file():
        if any(not path.name.startswith(".") for path in out.iterdir()):
            raise DataError(f"{out} is not empty and was not created by `comodal prepare`; use another folder")
        return False
    old = read_json_object(about)
    changed = [
        f"{name} was {old['options'].get(name)!r} and is {value!r}"
        for name, value in new_settings["options"].items()
        if old["options"].get(name) != value
    ]
    if old["kind"] != new_settings["kind"]:
        changed = [f"it holds {old['kind']}, not {new_settings['kind']}"]
    if not changed and old["plan"] != new_settings["plan"]:
        changed = ["the source files have changed"]
    if changed:
        raise DataError(
            f"{out} was started with other options: {'; '.join(changed)}. Use another folder, or delete this one"
        )
    return old["finished"]


def remove_partial_files(out: Path) -> None:
    """Remove the unfinished files of an interrupted command."""
    for path in [*out.glob("*/.*.part"), *out.glob(".*.part"), *out.glob("*/.*.progress")]:
        path.unlink(missing_ok=True)


def encode_settings_json(value: Any) -> bytes:
    text = json.dumps(value, indent=1, ensure_ascii=False) + "\n"
    return text.encode("utf-8", "backslashreplace")
