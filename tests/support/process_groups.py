"""Commands in a process group of their own, which are killed while their workers work."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

END_SECONDS = 20.0


def kill_when(code: str, *arguments: object, begun: Callable[[], bool]) -> bool:
    """Runs Python code, kills its process alone with SIGKILL when it has begun, and says whether all that it started
    ends soon after."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    nothing = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=nothing, stderr=nothing, start_new_session=True)
    while not begun() and process.poll() is None:
        time.sleep(0.01)
    assert process.poll() is None, "it ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + END_SECONDS
    while time.monotonic() < deadline:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    return False
