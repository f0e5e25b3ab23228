"""Runs a command on a file system that is full, then again with space; Linux only.

    python -m tests.support.full_disk_commands

Reads lines of JSON (action, words, folder, seed, number) and answers each with a line. It is a process of its
own, since a child that is forked from one with threads may wait for their locks for ever. The file system is a tmpfs in
a mount namespace of a child, so that nothing outside sees it and it goes with the child.
"""

import contextlib
import ctypes
import io
import json
import os
import shutil
import signal
import sys
import traceback
import zlib
from collections.abc import Callable
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file

from comodal.cli.program import main
from comodal.files import TEMPORARY_NAME, hash_host_name

CLONE_NEWNS, CLONE_NEWUSER = 0x20000, 0x10000000
MS_REMOUNT, MS_REC, MS_PRIVATE = 32, 16384, 1 << 18
PLENTY = 64 << 20
COMMAND_MODULES = (
    "comodal.data.shards.ingest", "comodal.data.shards.paired_files", "comodal.regions.prepare_regions",
    "comodal.regions.extract", "comodal.regions.visual_tokens", "comodal.inference.embed_files", "comodal.hub",
    "comodal.runtimes.export", "comodal.synthetic.synthesize", "comodal.inference.image_search.search_command",
    "comodal.tasks.convert_vilbert_files", "comodal.inference.openl3_files", "comodal.regions.convert_detector",
    "comodal.recipes.avc_pretraining", "comodal.tasks.vision_language.question_answering.vqa", "comodal.training.run",
)  # fmt: skip


class Run(NamedTuple):
    """How a command ended, and what it printed as errors."""

    status: int
    said: str


def call_libc(name: str, *values: object) -> None:
    """Calls a function of the C library.

    Raises:
        OSError: It failed.
    """
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*values) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")


def enter_namespace() -> None:
    """Gives this process mounts of its own; without being root, as root of a user namespace of its own."""
    user, group = os.getuid(), os.getgid()
    call_libc("unshare", CLONE_NEWNS | (CLONE_NEWUSER if user else 0))
    if user:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text)
    call_libc("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)


def mount(folder: Path, size: int, flags: int = 0) -> None:
    call_libc("mount", b"tmpfs", os.fsencode(folder), b"tmpfs", flags, f"size={size}".encode())


def in_child(work: Callable[[], object]) -> object:
    """What work returns in a process of its own, as JSON."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            made = json.dumps(work())
        except BaseException:  # noqa: BLE001 - the parent looks at it
            made = json.dumps({"error": traceback.format_exc()})
        with os.fdopen(writing, "w") as pipe:
            pipe.write(made)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        made = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return json.loads(made) if made else {"error": f"ended with {status}"}


def why_impossible(folder: Path) -> str | None:
    """Why this system does not let us mount a file system, or None."""
    found = in_child(lambda: [enter_namespace(), mount(folder, 1 << 16), None][-1])
    return str(found["error"]).strip().splitlines()[-1] if isinstance(found, dict) else None


def run(words: list[str], killed_at_sync: int = 0) -> Run:
    """A command in a process of its own, which may be killed when it syncs a file for the n-th time."""

    def work() -> tuple[int, str]:
        said, status, syncs, sync = io.StringIO(), 99, count(1), os.fsync

        def sync_or_die(descriptor: int) -> None:
            if next(syncs) == killed_at_sync:
                os.kill(os.getpid(), signal.SIGKILL)
            sync(descriptor)

        os.fsync = sync_or_die
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                status = main(words)
            except SystemExit as ended:
                status = int(ended.code or 0)
        return status, said.getvalue()[-20_000:]

    found = in_child(work)
    return Run(99, str(found["error"])) if isinstance(found, dict) else Run(*found)  # type: ignore[misc]


def contents(folder: Path) -> dict[str, str]:
    """A checksum of each file, without what names the time or the machine."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() or path.name in (".lock", "environment.json") or "tensorboard/" in name:
            continue
        if path.suffix == ".safetensors":
            data = b"".join(key.encode() + tensor.numpy().tobytes() for key, tensor in sorted(load_file(path).items()))
        elif path.suffix in (".pt2", ".pt") or path.name in ("export.json", "metrics.jsonl", "config.json"):
            data = b"there"  # they hold times, and metrics.jsonl the seconds of steps
        else:
            data = path.read_bytes()
        found[name] = f"{zlib.crc32(data):08x}"
    return found


def run_undisturbed(words: list[str], folder: Path, seed: str) -> object:
    """What a command leaves, and the bytes that it takes."""

    def work() -> list:
        before = prepare_disk(folder, seed)
        whole = run(words)
        assert whole.status == 0, whole.said
        return [contents(folder), count_used_bytes(folder) - before]

    return in_child(work)


def run_on_full_disk(words: list[str], folder: Path, seed: str, size: int) -> object:
    """A command on a file system with this many free bytes, and again with space: both runs, what they left, and the
    temporary files after the first."""

    def work() -> list:
        before = prepare_disk(folder, seed)
        mount(folder, max(4096, (before + size) // 4096 * 4096), MS_REMOUNT)
        full = run(words)
        leftovers = list_temporary_files(folder)
        mount(folder, PLENTY, MS_REMOUNT)
        again = run(words)
        return [full, again, contents(folder), leftovers]

    return in_child(work)


def run_killed(words: list[str], folder: Path, seed: str, moment: int) -> object:
    """A command that is killed when it syncs a file to disk for the `moment`-th time, and again: the second run, what
    both left, and the temporary files after each."""

    def work() -> list:
        prepare_disk(folder, seed)
        run(words, moment)
        first = list_temporary_files(folder) or leave_temporary_file(folder)
        again = run(words)
        return [again, contents(folder), first, list_temporary_files(folder)]

    return in_child(work)


def leave_temporary_file(folder: Path) -> list[str]:
    """Leaves what a killed worker process leaves, which the parent cannot be made to: half of a file that it wrote."""
    dead = os.fork()
    if not dead:
        os._exit(0)
    os.waitpid(dead, 0)
    path = max((path for path in folder.rglob("*") if path.suffix == ".npz"), key=os.path.getsize)
    half = path.with_name(f".{path.name}.{dead}-{hash_host_name()}.part")
    half.write_bytes(path.read_bytes()[:100])
    path.unlink()
    return [half.name]


def prepare_disk(folder: Path, seed: str) -> int:
    """Mounts a file system with a copy of a folder (or nothing) as its `out`; returns the bytes that it takes."""
    enter_namespace()
    mount(folder, PLENTY)
    if seed:
        shutil.copytree(seed, folder / "out")
    return count_used_bytes(folder)


def count_used_bytes(folder: Path) -> int:
    space = os.statvfs(folder)
    return (space.f_blocks - space.f_bfree) * space.f_frsize


def list_temporary_files(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if TEMPORARY_NAME.fullmatch(path.name)]


if __name__ == "__main__":
    for module in COMMAND_MODULES:  # once, and not in each child
        import_module(module)
    actions = {"undisturbed": run_undisturbed, "full": run_on_full_disk, "killed": run_killed}
    for line in sys.stdin:
        action, request, disk, *rest = json.loads(line)
        print(json.dumps(actions[action](request, Path(disk), *rest)), flush=True)
