"""Answer vocabularies: the answer of each output of a head, in the model folder or in a file of the user."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comodal.data.regions.safe_unpickler import load_pickle
from comodal.errors import CheckpointError, DataError
from comodal.models.checkpoint import find_model_folder
from comodal.models.vilbert.heads import Head
from comodal.text_files import read_json, read_lines

VQA_HEAD, GQA_HEAD = "vqa", "gqa"  # of models
ANSWERS_FILE = "answers.json"  # in the model folder
GQA_ANSWERS_FILE = "gqa_answers.json"  # of the head `gqa`, where the model has both heads


def read_answer_vocabulary(path: Path) -> list[str]:
    """Reads an answer vocabulary: a list of answers or {answer: index}, as JSON or as the original's pickle, or a
    text file (.txt) with one answer per line.

    Raises:
        DataError: It cannot be read, has another format, or its indices are not 0, 1, 2, ...
    """
    if path.suffix == ".txt":
        content: Any = [line.strip() for line in read_lines(path) if line.strip()]
    else:
        content = read_safe_pickle(path) if path.suffix in (".pkl", ".p") else read_json(path)
    if isinstance(content, dict):
        has_indices = all(isinstance(index, int) and not isinstance(index, bool) for index in content.values())
        if not has_indices or sorted(content.values()) != list(range(len(content))):
            raise DataError(f"{path}: the {len(content)} answers do not have the indices 0, 1, 2, ...")
        content = sorted(content, key=lambda answer: content[answer])
    if not isinstance(content, list) or not content or not all(isinstance(answer, str) for answer in content):
        raise DataError(f"{path}: neither a list of answers nor answers with indices")
    if len(set(content)) < len(content):
        duplicate = next(answer for answer, times in Counter(content).items() if times > 1)
        raise DataError(f"{path}: the answer {duplicate!r} is a duplicate")
    return content


def encode_answers(answers: Sequence[str]) -> bytes:
    """The content of a file of answers in a model folder."""
    return (json.dumps(list(answers), ensure_ascii=False, indent=0) + "\n").encode()


def read_safe_pickle(path: Path) -> Any:
    """Reads a pickle of lists, dicts, texts and numbers without running any code in it."""
    try:
        return load_pickle(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def name_answers_file(head: str) -> str:
    """The name of the file with the answers of a head, in a model that may have both answer heads."""
    return GQA_ANSWERS_FILE if head == GQA_HEAD else ANSWERS_FILE


def find_answers_file(model: Path, head: str) -> Path:
    """The file with the answer vocabulary of a head: gqa_answers.json or answers.json; it may be missing."""
    folder = find_model_folder(model)
    own = folder / name_answers_file(head)
    return own if own.is_file() else folder / ANSWERS_FILE


def read_model_vocabulary(model: Path, head: Head) -> list[str]:
    """The answer vocabulary of a head of a fine-tuned model, from the file in the model's folder.

    Raises:
        CheckpointError: The file is missing, or does not have an answer for each output of the head.
    """
    path = find_answers_file(model, head.name)
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: it has the answer of each output of the model")
    answers = read_answer_vocabulary(path)
    if len(answers) != head.outputs:
        raise CheckpointError(f"{model}: its {len(answers)} answers do not fit its {head.outputs} scores ({path.name})")
    return answers
