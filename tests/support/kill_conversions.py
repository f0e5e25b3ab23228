"""Kills the conversion of SOURCE at many lines of its code, each time in a process of its own, and finishes it.

    python -m tests.support.kill_conversions SOURCE FOLDER STEP

STEP 1 takes all such lines, 5 every fifth. Prints at how many lines; ends with an error where what was finished is
not, byte for byte, what one run makes.
"""

import io
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType

from comodal.data.regions.convert_features import convert_regions

TRACED = {"convert_features.py", "region_store.py", "files.py"}
DELICATE = {
    "write_atomically",
    "write_bytes_atomically",
    "write_store_about",
    "_finish",
    "__exit__",
    "__enter__",
    "convert_regions",
}
EVERY = 29  # of the other lines


def in_child(work: Callable[[], object]) -> int:
    """What the system says of how a child ended that did this."""
    child = os.fork()
    if not child:
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                work()
            os._exit(0)
        finally:  # never back into the parent's code
            traceback.print_exc()
            os._exit(1)
    return os.waitpid(child, 0)[1]


def traced(work: Callable[[], object], limit: int | None = None) -> list[str]:
    """The function of each line of ours that the work runs; it is killed at one of them."""
    lines: list[str] = []

    def trace(frame: FrameType, event: str, _argument: object) -> Callable | None:
        if Path(frame.f_code.co_filename).name not in TRACED:
            return None
        if event == "line":
            lines.append(frame.f_code.co_name)
            if len(lines) == limit:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    work()
    sys.settrace(None)
    return lines


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(source: Path, folder: Path, step: int) -> None:
    whole, listed, out = folder / "whole", folder / "lines", folder / "killed"
    assert in_child(lambda: listed.write_text(" ".join(traced(lambda: convert_regions(source, whole))))) == 0
    lines, wanted = listed.read_text().split(), contents(whole)
    moments = [number for number, name in enumerate(lines, 1) if name in DELICATE or number % EVERY == 0][::step]
    for number, moment in enumerate(moments):
        where = f"line {moment} of {len(lines)}, in {lines[moment - 1]}"
        assert in_child(lambda moment=moment: traced(lambda: convert_regions(source, out), moment)) == signal.SIGKILL, (
            where
        )
        if number % 5 == 0:  # a second time, while it goes on
            in_child(lambda moment=moment: traced(lambda: convert_regions(source, out), moment // 2))
        assert in_child(lambda: convert_regions(source, out)) == 0, where
        found = contents(out)
        differing = [name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name)]
        assert not differing, f"{where}: {differing}"
        shutil.rmtree(out)
    print(len(moments))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
