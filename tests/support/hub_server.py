"""A server on this machine that speaks the few requests of the Hugging Face hub that a small repository needs."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """Putting and getting."""

    files: dict[str, bytes]

    def answer(self, content: object, status: int = 200) -> None:
        self.give(json.dumps(content).encode(), {"Content-Type": "application/json"}, status)

    def give(self, body: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        address = f"http://{self.headers['Host']}/me/small"
        if self.path.endswith("/repos/create"):
            self.answer({"url": address, "name": "me/small"})
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(body)["files"]
            kept = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in asked]
            self.answer({"files": kept})
        elif self.path.endswith("/commit/main"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer({"success": True, "commitOid": COMMIT, "commitUrl": f"{address}/commit/{COMMIT}"})
        else:
            self.answer({"errors": [], "warnings": []})  # the check of a model card's front matter

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        name = path.partition(f"/resolve/{COMMIT}/")[2]
        if name in self.files:
            headers = {"ETag": f'"{hash(name):x}"', "X-Repo-Commit": COMMIT}
            self.give(self.files[name], headers)
        elif path.startswith("/api/models/me/small/tree/"):
            self.answer(
                [{"type": "file", "path": name, "size": len(data), "oid": COMMIT} for name, data in self.files.items()]
            )
        elif path.startswith("/api/models/me/small") and self.files:
            siblings = [{"rfilename": name} for name in self.files]
            self.answer(
                {"id": "me/small", "modelId": "me/small", "sha": COMMIT, "siblings": siblings, "private": False}
            )
        else:
            self.give(b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def served() -> Iterator[tuple[str, dict[str, bytes]]]:
    """The server's address, and the files of its one repository, me/small."""
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


COMMANDS = """
import contextlib, io, json, sys
from comodal.cli.program import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as said, contextlib.redirect_stdout(said):
        status = main(words)
    print(json.dumps([status, said.getvalue()]))
"""


def comodal_at(address: str, home: Path, *commands: Sequence[object]) -> list[tuple[int, str]]:
    """Commands of ours whose hub is that server, one after the other in a process: how each ends, and what it says."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_nobody",
                                "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
    told = json.dumps([[str(word) for word in words] for words in commands])
    command = [sys.executable, "-c", COMMANDS, told]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]
