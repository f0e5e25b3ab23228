"""Shared models: what goes along and what does not, and there and back over a server that speaks the hub's protocol."""

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import load_model
from comodal.serve.sharing import save_pretrained
from small_tasks import QUESTION, write_pretrained

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The few requests of the hub's API that putting and getting a small repository needs."""

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


@pytest.fixture
def hub() -> Iterator[tuple[str, dict[str, bytes]]]:
    files: dict[str, bytes] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Served", (Hub,), {"files": files}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files
    server.shutdown()
    server.server_close()


def run_of(folder: Path) -> Path:
    run = write_pretrained(folder / "run", [QUESTION])
    (run / "model" / "regions.json").write_text('{"dim": 8}')
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "step.pt").write_bytes(b"optimizer")
    card = {
        "kind": "card", "task": "vqa", "title": "VQA v2", "split": "val2014", "model": "run", "regions": None,
        "scores": {"accuracy": {"value": 0.75, "low": 0.7, "high": 0.8, "paper": None}}, "counts": {"items": 8},
        "files": {}, "seeds": {}, "settings": {}, "versions": {},
    }  # fmt: skip
    (folder / "results").mkdir()
    (folder / "results" / "card.json").write_text(json.dumps(card))
    return run


def test_what_is_needed_goes_along_with_a_card_and_nothing_else(tmp_path: Path):
    found = save_pretrained(run_of(tmp_path), tmp_path / "shared", tmp_path / "results")
    names = {path.relative_to(tmp_path / "shared").as_posix() for path in (tmp_path / "shared").rglob("*.*")}
    kept = {"config.json", "model.safetensors", "tokenizer.json", "regions.json", "README.md", "results/00/card.json"}
    assert names == kept and found == {"share.files": 6, "share.cards": 1}
    text = (tmp_path / "shared" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["library_name"] == "comodal" and front["license"] == "mit"
    (result,) = front["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.75}]
    assert "| accuracy | 0.7500 | 0.700-0.800 |" in text and "`ViLBERT`" in text


def test_a_moved_model_gives_the_same(tmp_path: Path):
    run = run_of(tmp_path)
    save_pretrained(run, tmp_path / "shared")
    first, second = load_model(run).state_dict(), load_model(tmp_path / "shared").state_dict()
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_what_cannot_be_shared_is_told(tmp_path: Path):
    run = run_of(tmp_path)
    with pytest.raises(DataError, match="is there already"):
        save_pretrained(run, run)
    with pytest.raises(DataError, match="no results card"):
        save_pretrained(run, tmp_path / "shared", run)
    with pytest.raises(CheckpointError, match="no model here"):
        save_pretrained(tmp_path, tmp_path / "shared")
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(CheckpointError):
        save_pretrained(run, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_there_and_back_over_the_hub(tmp_path: Path, hub: tuple[str, dict[str, bytes]]):
    address, files = hub
    run = run_of(tmp_path)
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_nobody",
                                "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}  # fmt: skip

    def comodal(*words: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "comodal", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)

    nobody = comodal("pull", "me/small", tmp_path / "nobody")
    assert nobody.returncode == 1 and "me/small: not got from the hub" in nobody.stderr
    assert "Traceback" not in nobody.stderr
    pushed = comodal("push", run, "me/small", "--results", tmp_path / "results")
    assert pushed.returncode == 0, pushed.stderr
    assert "model.safetensors" in files and not any("step.pt" in name for name in files)
    pulled = comodal("pull", "me/small", tmp_path / "got")
    assert pulled.returncode == 0, pulled.stderr
    assert (tmp_path / "got" / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert load_model(tmp_path / "got").config == load_model(run).config
