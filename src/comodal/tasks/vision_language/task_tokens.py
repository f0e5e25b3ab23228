"""The task tokens of 12-in-1: which of them a model with task tokens gets for each task.

The ids are the numbers of the tasks in facebookresearch/vilbert-multi-task (`vilbert_tasks.yml`).
"""

from comodal.models.vilbert.single_stream import SingleStreamConfig
from comodal.models.vilbert.vilbert_config import ViLBERTConfig

NUM_TASK_TOKENS = 20  # of the original
TASK_TOKENS = {"vqa": 1, "gqa": 15, "score": 8, "regions": 10, "pairs": 12, "entailment": 13}  # by the name of a head
VCR_ANSWER_TOKEN, VCR_RATIONALE_TOKEN = 5, 6


def choose_task_token(config: ViLBERTConfig | SingleStreamConfig, head: str, task_token: int | None) -> int | None:
    """The task token of a model; None for a model without task tokens.

    Args:
        config: Configuration of the backbone.
        head: Name of the head, which has a default token: `score` that of Flickr30k retrieval, `regions` RefCOCO+'s.
        task_token: The token to use instead.

    Raises:
        ValueError: The model has no such token.
    """
    if not config.task_tokens:
        if task_token is not None:
            raise ValueError(f"task_token is {task_token}, and the model has no task tokens")
        return None
    token = TASK_TOKENS.get(head, 0) if task_token is None else task_token
    if not 0 <= token < config.task_tokens:
        raise ValueError(f"task_token is {token}, and the model has {config.task_tokens} task tokens, from 0")
    return token
