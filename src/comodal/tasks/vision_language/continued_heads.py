"""Which heads of a fine-tuned model go on training with its network (12-in-1, the rows fine-tuned from all tasks)."""

from collections.abc import Mapping
from pathlib import Path

from comodal.console import print_line
from comodal.models.vilbert.task_model import TaskModel
from comodal.tasks.vision_language.answer_files import (
    ANSWERS_FILE,
    encode_answers,
    find_answers_file,
    name_answers_file,
    read_answer_vocabulary,
)


def continue_heads(network: TaskModel, fine_tuned: TaskModel, folder: Path, files: Mapping[str, bytes | Path]) -> None:
    """Copies the heads that a fine-tuned model has too, and prints which; the others stay new.

    An answer head is copied if its answers are the same, in the same order.

    Args:
        network: The model to train.
        fine_tuned: The model that it starts from.
        folder: Its folder, which has its answers.
        files: The files of the run, with its answers.
    """
    initial_heads = {head.name: head for head in fine_tuned.config.heads}
    for head in network.config.heads:
        if head.name not in initial_heads:
            continue
        reason = ""
        if initial_heads[head.name] != head:
            reason = f"it has {initial_heads[head.name].outputs:,} outputs, not {head.outputs:,}, or other layers"
        elif head.kind == "answers":
            reason = compare_answers(find_answers_file(folder, head.name), head.name, files)
        if reason:
            print_line(f"the head {head.name!r} of {folder} is replaced by a new one: {reason}", stderr=True)
        else:
            network.heads[head.name].load_state_dict(fine_tuned.heads[head.name].state_dict())
            print_line(f"the head {head.name!r} of {folder} goes on training", stderr=True)


def compare_answers(path: Path, head: str, files: Mapping[str, bytes | Path]) -> str:
    """Why an answer head cannot be copied, or "" if the answers in its file are those of the run."""
    content = files.get(name_answers_file(head), files.get(ANSWERS_FILE))
    if not path.is_file():
        return f"{path} is missing, so its answers are unknown"
    is_same = encode_answers(read_answer_vocabulary(path)) == content
    return "" if is_same else f"the answers in {path} differ (--answers)"
