"""The command line: every command is a thin call of a Python function with the same parameters.

The tables below name the functions by text, so that `--help` of a group imports neither torch nor any of ours; a
command's own flags are read from its function's signature and docstring by jsonargparse.
"""

import argparse
import ast
import errno
import importlib
import inspect
import io
import keyword
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, DefaultHelpFormatter, Namespace

from comodal.console import say
from comodal.errors import ComodalError

COMMANDS = {
    "demo": ("comodal.demo:demo", "playground, training, evaluation and a report, in minutes"),
    "playground": ("comodal.playground.make:make_playground", "a made-up world of short videos with sound"),
    "prepare videos": ("comodal.data.ingest:prepare_videos", "a folder or a list of videos -> shards of clips"),
    "prepare pairs": ("comodal.data.pair_folders:prepare_pairs", "pictures and sounds in class folders -> shards"),
    "prepare regions": ("comodal.serve.prepare_regions:prepare_regions", "features or images -> a region store"),
    "prepare boxes": (
        "comodal.tasks.grounding_files:prepare_boxes",
        "COCO's objects or detections -> boxes for regions",
    ),
    "prepare tokens": ("comodal.serve.tokens:prepare_tokens", "region store -> a visual token for each region"),
    "extract": ("comodal.serve.extract:extract_regions", "a folder of images -> a region store"),
    "env": ("comodal.environment:env", "what was detected of this machine, and what will be used"),
    "inspect": ("comodal.analysis.describe:inspect", "what a shard folder, run, checkpoint or embedding is"),
    "doctor": ("comodal.serve.doctor:doctor", "which front end and network made an embedding, and how faithfully"),
    "train": ("", "train a recipe: comodal train RECIPE --data SHARDS --out RUN"),
    "recipes": ("", "what `comodal train` trains: recipes without labels, tasks with them"),
    "evaluate esc50": ("comodal.tasks.sounds:evaluate_esc50", "ESC-50 or ESC-10, beside untrained and spectrogram"),
    "evaluate dcase": ("comodal.tasks.dcase:evaluate_dcase", "acoustic scenes of DCASE 2013 or TAU, or a submission"),
    "evaluate us8k": ("comodal.tasks.urban_sounds:evaluate_us8k", "UrbanSound8K in its ten folds"),
    "evaluate sounds": ("comodal.tasks.sound_folders:evaluate_sounds", "a probe on class folders of sounds"),
    "evaluate retrieval": ("comodal.tasks.retrieval:evaluate_retrieval", "images by captions, captions by images"),
    "evaluate vqa": ("comodal.tasks.vqa:evaluate_vqa", "VQA v2: answers, the official accuracy, a submission"),
    "evaluate gqa": ("comodal.tasks.gqa:evaluate_gqa", "GQA: answers, accuracy by type of question, a submission"),
    "evaluate visual_genome": (
        "comodal.tasks.visual_genome:evaluate_visual_genome",
        "Visual Genome's questions: answers in VQA's way of writing",
    ),
    "evaluate vcr": ("comodal.tasks.vcr:evaluate_vcr", "VCR: answers, rationales, both, a submission"),
    "evaluate grounding": ("comodal.tasks.grounding:evaluate_grounding", "RefCOCO, RefCOCO+, RefCOCOg: what is meant"),
    "evaluate phrases": (
        "comodal.tasks.phrases:evaluate_phrases",
        "Flickr30k Entities: what phrases of captions mean",
    ),
    "evaluate nlvr2": ("comodal.tasks.nlvr2:evaluate_nlvr2", "is a sentence true of two pictures"),
    "evaluate entailment": (
        "comodal.tasks.entailment:evaluate_entailment",
        "SNLI-VE: does a picture entail a sentence",
    ),
    "evaluate images": ("comodal.tasks.images:evaluate_images", "linear probe on ImageNet or an ImageFolder"),
    "evaluate image_classes": (
        "comodal.tasks.image_classes:evaluate_image_classes",
        "pictures by a network that was fine-tuned for their classes",
    ),
    "evaluate sound_classes": (
        "comodal.tasks.sound_classes:evaluate_sound_classes",
        "sounds by a network that was fine-tuned for their classes",
    ),
    "results": ("comodal.tasks.card:results", "the results cards of several evaluations -> one table"),
    "report": ("comodal.analysis.report:write_report", "curves, scores, verdicts and units of a run on one page"),
    "match": ("comodal.serve.match:match", "a picture or a video and a sound -> do they belong together, when, where"),
    "ask": ("comodal.serve.commands:ask", "a picture and a question -> answers"),
    "fill": ("comodal.serve.commands:fill", "a picture and a sentence with [MASK] -> words"),
    "align": ("comodal.serve.commands:align", "a picture and texts -> how likely each belongs to it"),
    "ground": ("comodal.serve.commands:ground", "a picture and a phrase -> the box that is meant"),
    "search": ("comodal.serve.search:search", "a folder of pictures and a text -> the pictures that it is true of"),
    "convert vilbert": ("comodal.serve.convert:convert", "ViLBERT's published weights -> a model, and back"),
    "convert openl3": ("comodal.serve.openl3_files:convert_openl3", "OpenL3's published weights -> a model"),
    "convert detector": ("comodal.serve.convert_detector:convert_detector", "a region detector's weights -> a model"),
    "export": ("comodal.serve.export:export", "a model's networks -> ONNX, OpenVINO or torch.export, compared at once"),
    "share": ("comodal.serve.sharing:save_pretrained", "a model as a folder to give away, with a model card"),
    "push": ("comodal.serve.sharing:push_to_hub", "a model -> the Hugging Face hub"),
    "pull": ("comodal.serve.sharing:from_pretrained", "the Hugging Face hub -> a model"),
    "embed audio": ("comodal.serve.embed:embed_audio", "sound files -> one vector per hop, .npz"),
    "embed image": ("comodal.serve.embed:embed_image", "pictures -> one vector each, .npz"),
    "embed video": ("comodal.serve.embed:embed_video", "videos -> vectors of sound and frames, .npz"),
}
GROUPS = {
    "prepare": "files -> shards",
    "evaluate": "what was learnt",
    "embed": "files in, vectors out",
    "convert": "other people's weights -> ours",
}
POSITIONAL = {
    *("source", "store", "out", "images", "sounds", "folder", "path", "files", "run"),
    *("image", "question", "text", "texts", "phrase", "repository"),
}
USAGE_ERROR, INTERRUPTED = 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status (0 done, 1 failed with a sentence, 2 wrong usage, 130 interrupted)."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for stream in (sys.stdout, sys.stderr):  # names of files may hold what a terminal's encoding lacks
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        refuse_broken(words)
        return dispatch(words)
    except (ComodalError, ValueError) as error:
        return failed(error, str(error))
    except OSError as error:
        reasons = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}
        where = f"{error.filename}: " if error.filename else ""
        return failed(error, f"{where}{reasons.get(error.errno or 0, error.strerror or str(error))}")
    except FloatingPointError as error:
        return failed(error, str(error))
    except KeyboardInterrupt:
        print("comodal: interrupted; the same command goes on where it stopped", file=sys.stderr)
        return INTERRUPTED


def refuse_broken(words: list[str]) -> None:
    """Refuses names of files that are no text, since nothing that is written could hold them.

    Raises:
        ValueError: A word is not UTF-8.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise ValueError(f"{word!a} is not UTF-8; if it is a file, rename it") from None


def failed(error: BaseException, sentence: str) -> int:
    """Prints one sentence; COMODAL_DEBUG=1 shows the stack trace as well."""
    if os.environ.get("COMODAL_DEBUG"):
        raise error
    say(f"comodal: error: {sentence}", stderr=True)
    return 1


def dispatch(words: list[str]) -> int:
    """Finds the longest command that the words begin with, and runs it."""
    if not words or words[0] in {"-h", "--help"}:
        print_commands("")
        return 0
    if words[0] == "--version":
        print(importlib.import_module("comodal").__version__)
        return 0
    if words[0] == "recipes":
        print_recipes()
        return 0
    if words[0] == "train":
        return run_train(words[1:])
    if words[0] in GROUPS and (len(words) == 1 or words[1] in {"-h", "--help"}):
        print_commands(words[0])
        return 0
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in COMMANDS:
            return run_function(name, words[length:])
    print(f"comodal: error: there is no command {' '.join(words[:2])!r}; `comodal --help` lists them", file=sys.stderr)
    return USAGE_ERROR


def print_commands(group: str) -> None:
    """The help of the whole command line, or of one group."""
    print(f"usage: comodal {group + ' ' if group else ''}COMMAND ...\n")
    print(GROUPS.get(group, "comodal learns representations from things that go together, without labels.") + "\n")
    for name, (_, sentence) in COMMANDS.items():
        if name.startswith(group):
            print(f"  comodal {name:<17} {sentence}")
    print("\n`comodal COMMAND --help` shows a command's options and examples.")


def load(target: str) -> Callable:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def run_function(name: str, words: list[str]) -> int:
    """Parses a command's words with its function's signature, and calls it."""
    function = load(COMMANDS[name][0])
    parser = new_parser(name, function)
    required = [p.name for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    flags_only = name.startswith("evaluate ")
    positional = [] if flags_only else [p for p in required if p in POSITIONAL]
    for parameter in positional:
        kind = str(inspect.signature(function).parameters[parameter].annotation)
        count = "+" if re.search("list|Sequence", kind) else None
        parser.add_argument(
            parameter, type=Path if "Path" in kind else str, nargs=count, help=help_of(function, parameter)
        )
    parser.add_function_arguments(function, as_group=False, skip=set(positional), fail_untyped=True)
    function(**parsed(parser, words))
    return 0


def run_train(words: list[str]) -> int:
    """`comodal train RECIPE`: the recipe's parameters and the trainer's, in one line."""
    if not words or words[0] in {"-h", "--help"}:
        print("usage: comodal train RECIPE --data SHARDS --out RUN [options]\n")
        print_recipes()
        print("\n`comodal train RECIPE --help` shows a recipe's options and examples.")
        return 0
    if words[0] not in recipes():
        print(f"comodal: error: there is no recipe {words[0]!r}; there is: {', '.join(recipes())}", file=sys.stderr)
        return USAGE_ERROR
    recipe, train = load(f"comodal.{recipes()[words[0]]}.{words[0]}:recipe"), load("comodal.training.run:train")
    parser = new_parser(f"train {words[0]}", recipe)
    parser.add_function_arguments(recipe, as_group=False)
    parser.add_function_arguments(train, as_group=False, skip={"recipe", "parameters"})
    values = parsed(parser, words[1:])
    parameters = {name: values.pop(name) for name in inspect.signature(recipe).parameters}
    return int(train(recipe, parameters, **values) or 0)


def recipes() -> dict[str, str]:
    """What can be trained, and the folder of its file: recipes without labels first, then tasks with them."""
    here = Path(__file__).parent
    found = ((path.stem, folder) for folder in ("recipes", "tasks") for path in sorted((here / folder).glob("*.py"))
             if "\ndef recipe(" in path.read_text())  # fmt: skip
    return dict(found)


def print_recipes() -> None:
    for name, folder in recipes().items():
        text = (Path(__file__).parent / folder / f"{name}.py").read_text()
        print(f"  {name:<20} {(ast.get_docstring(ast.parse(text)) or '').splitlines()[0]}")


class PlainHelp(DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keeps the line breaks of descriptions and examples."""


def new_parser(name: str, function: Callable) -> ArgumentParser:
    """A parser with the docstring's text above the options and its examples below them."""
    text = inspect.getdoc(function) or ""
    about = re.split(r"\n(?:Args|Returns|Raises|Examples?):", text)[0].strip()
    examples = re.search(r"\nExamples?:\n((?:[ \t]+.*\n?|\n)+)", text + "\n")
    epilog = "examples:\n" + examples.group(1).rstrip() if examples else None
    parser = ArgumentParser(
        prog=f"comodal {name}", description=about, epilog=epilog, formatter_class=PlainHelp, default_env=False
    )
    parser.add_argument("--config", action="config", help="a YAML file with these options")
    return parser


def help_of(function: Callable, parameter: str) -> str:
    """A parameter's sentence from the docstring's Args section."""
    found = re.search(rf"\n\s+{parameter}:\s+(.+?)(?=\n\s+\w+: |\n\n|\Z)", inspect.getdoc(function) or "", re.DOTALL)
    return re.sub(r"\s+", " ", found.group(1)) if found else ""


def parsed(parser: ArgumentParser, words: list[str]) -> dict:
    """The values of the words."""
    hints = {action.dest: getattr(action, "_typehint", None) for action in parser._actions}
    values: Namespace = parser.parse_args(spelled(words, hints))
    return {name: value for name, value in values.as_dict().items() if name != "config"}


def spelled(words: list[str], hints: dict[str, object]) -> list[str]:
    """`--short-side` is `--short_side`, `--resume` alone `--resume true`, `--classes a,b` the list `[a, b]`, and
    `--from` the parameter from_, since Python keeps the word."""
    result: list[str] = []
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            name = "--" + name[2:].replace("-", "_")
            name += "_" * keyword.iskeyword(name[2:])
        hint = hints.get(name[2:]) if word.startswith("--") else None
        if hint is bool and not equals and following.lower() not in {"true", "false"}:
            equals, value = "=", "true"
        before = result[-1] if result else ""
        if before.startswith("--") and "Sequence[" in str(hints.get(before[2:])) and not word.startswith(("-", "[")):
            name, equals, value = f"[{word}]", "", ""
        result.append(name + equals + value)
    return result
