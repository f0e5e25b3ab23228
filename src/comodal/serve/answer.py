"""One image and a text in; an answer, a word, a verdict or a box out.

A run remembers what its regions were made of (regions.json), so that the regions of any picture can be made the same
way: by the same detector, in the cells of a grid over the same vision network (kept beside the model), or in the boxes
that the user gives.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from comodal.console import say, say_json
from comodal.data.captions import with_whole_image
from comodal.errors import CheckpointError, DataError, MediaError
from comodal.hardware import Compute, DeviceName, Precision, resolve
from comodal.media.image import read_image
from comodal.media.text import Words
from comodal.models.checkpoint import load_model, model_folder
from comodal.models.task_model import TaskModel
from comodal.models.vilbert import Output, Prefix, ViLBERT
from comodal.serve.region_network import extractor_for
from comodal.tasks.gqa import TASK as SCENES
from comodal.tasks.grounding import HEAD as POINTING
from comodal.tasks.vqa import HEAD as ANSWERING
from comodal.tasks.vqa import vocabulary_of
from comodal.text_files import read_json, read_json_object

MAX_REGIONS = 100


class Guess(NamedTuple):
    """Something that the model says, and how sure it is."""

    text: str
    probability: float


class Place(NamedTuple):
    """A box in pixels, left, top, right, bottom, and how sure the model is that it is meant."""

    box: tuple[float, ...]
    probability: float


class Seen(NamedTuple):
    """A picture as the model reads it."""

    picture: UInt8[np.ndarray, "height width 3"]
    boxes: Float32[np.ndarray, "regions 4"]
    prefix: Prefix


@dataclass(frozen=True)
class Answerer:
    """A run that is asked about pictures.

    Args:
        folder: Of the run or model.
        model: A ViLBERT, with or without heads.
        words: Its vocabulary.
        regions: What its regions are made of.
        compute: Where the model is, and in which precision it computes.
    """

    folder: Path
    model: ViLBERT | TaskModel
    words: Words
    regions: dict[str, Any]
    compute: Compute

    @property
    def vilbert(self) -> ViLBERT:
        """The network below the heads."""
        return self.model.vilbert if isinstance(self.model, TaskModel) else self.model

    @torch.inference_mode()
    def see(self, image: Path, boxes: Float32[np.ndarray, "regions 4"] | None = None) -> Seen:
        """Reads a picture and makes its regions.

        Args:
            image: The file.
            boxes: Left, top, right, bottom in pixels; by default the grid of the run's regions.

        Raises:
            DataError: The run's regions cannot be made here, or there are no boxes where it needs some.
            MediaError: The picture cannot be read, or is too thin.
        """
        try:
            extractor = extractor_for(self.folder, self.regions["made_from"], device=str(self.compute.device))
        except DataError as error:
            raise DataError(f"{self.folder} cannot be asked about a picture alone: {error}") from error
        picture = read_image(image)
        try:
            found = extractor(picture, boxes)
        except MediaError as error:
            raise MediaError(image, error.reason, error.detail) from None
        read, places = (
            torch.from_numpy(part)[None].to(self.compute.device) for part in with_whole_image(found, MAX_REGIONS)
        )
        attended = torch.ones(read.shape[:2], dtype=torch.bool, device=read.device)
        with self.compute.autocast():
            prefix = self.vilbert.vision_prefix(read, places, attended)
        return Seen(picture, found.boxes[:MAX_REGIONS], prefix)

    @torch.inference_mode()
    def meet(self, pieces: Sequence[int], seen: Seen) -> Output:
        """Both streams after they met."""
        if self.vilbert.config.task_tokens:
            raise DataError(f"{self.folder} has task tokens (12-in-1); fine-tune it for one task to ask it")
        words = torch.tensor([list(pieces)], device=self.compute.device)
        with self.compute.autocast():
            text = self.vilbert.text_prefix(words, torch.zeros_like(words), torch.ones_like(words, dtype=torch.bool))
            output = self.vilbert.join(text, seen.prefix)
        return Output(*(tensor.float() for tensor in output))

    def scores(self, head: str, wanted: str, pieces: Sequence[int], seen: Seen) -> Tensor:
        """What a head says.

        Raises:
            CheckpointError: The model has no such head.
        """
        if not isinstance(self.model, TaskModel) or head not in self.model.heads:
            raise CheckpointError(f"{self.folder} is not fine-tuned for {wanted}: `comodal train {wanted}` does that")
        output = self.meet(pieces, seen)
        with torch.inference_mode():
            return self.model.heads(head, *output, seen.prefix.attended)[0].float().cpu()

    def ask(self, seen: Seen, question: str, most: int = 5) -> list[Guess]:
        """The likeliest answers, each right or wrong by itself."""
        answers, heads = vocabulary_of(self.folder), self.model.heads if isinstance(self.model, TaskModel) else ()
        head = ANSWERING if ANSWERING in heads or SCENES.head not in heads else SCENES.head
        scores = self.scores(head, "vqa", self.words.encode(question), seen).sigmoid()
        if len(scores) != len(answers):
            raise CheckpointError(
                f"{self.folder}: its {len(answers)} answers are not those of its {len(scores)} scores"
            )
        best = highest(scores, most)
        return [Guess(answers[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def fill(self, seen: Seen, text: str, most: int = 5) -> list[list[Guess]]:
        """The likeliest words for each [MASK] of a text."""
        pieces = self.words.encode(text)
        hidden = [place for place, piece in enumerate(pieces) if piece == self.words.mask]
        if not hidden:
            what = f"has no [MASK] to fill in the first {len(pieces) - 2} pieces of words, which are read"
            raise ValueError(f"{textwrap.shorten(repr(text), 80)} {what}")
        output = self.meet(pieces, seen)
        with torch.inference_mode():
            shares = self.vilbert.word_head(output.words[0, hidden])[:, : self.words.size].float().softmax(1)
        best = highest(shares, most)
        return [
            [Guess(self.words.vocabulary[i], p) for p, i in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def align(self, seen: Seen, texts: Sequence[str]) -> list[Guess]:
        """How likely each text belongs to the picture."""
        found = []
        for text in texts:
            output = self.meet(self.words.encode(text), seen)
            with torch.inference_mode():
                logits = self.vilbert.alignment_head(output.text, output.vision)
            found.append(Guess(text, float(logits.float().softmax(1)[0, 0])))
        return found

    def ground(self, seen: Seen, phrase: str, most: int = 1) -> list[Place]:
        """The boxes that a phrase most likely means; the whole picture may be one."""
        scores = self.scores(POINTING.name, "grounding", self.words.encode(phrase), seen).sigmoid()
        height, width = seen.picture.shape[:2]
        boxes = np.concatenate([[[0.0, 0.0, width, height]], seen.boxes])
        best = highest(scores, most)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [Place((*map(float, boxes[i]),), p) for p, i in pairs]


def load(run: Path, device: DeviceName = "auto", precision: Precision = "auto") -> Answerer:
    """A run or model folder of a ViLBERT, to ask about pictures.

    Args:
        run: The folder.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Raises:
        CheckpointError: There is no ViLBERT, or it does not remember its regions.
        DataError: Its vocabulary is missing.
    """
    model, path = load_model(run), model_folder(run) / "regions.json"
    if not isinstance(model, ViLBERT | TaskModel):
        raise CheckpointError(f"{run}: a {type(model).__name__}; this needs a ViLBERT")
    regions = read_json_object(path, CheckpointError) if path.is_file() else {}
    if not isinstance(regions.get("made_from"), dict):
        raise CheckpointError(f"{path} says of what regions the model has learnt; it is missing, or has no made_from")
    compute = resolve(device, precision)
    return Answerer(run, model.to(compute.device), Words.read(run), regions, compute)


def highest(scores: Tensor, most: int) -> Any:
    """The highest of the last dimension and their places, as `topk`; fewer where there are no more.

    Raises:
        ValueError: Not one is wanted.
    """
    if most < 1:
        raise ValueError(f"top ({most}) must be at least 1")
    return scores.topk(min(most, scores.shape[-1]))


def corners(boxes: Path | None) -> Float32[np.ndarray, "regions 4"] | None:
    """Boxes of a JSON file: a list of left, top, right, bottom."""
    if boxes is None:
        return None
    try:
        found = np.array(read_json(boxes), np.float32).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise DataError(f"{boxes}: not a list of [left, top, right, bottom] ({error})") from error
    if not len(found) or not ((found[:, 2] > found[:, 0]) & (found[:, 3] > found[:, 1])).all():
        raise DataError(f"{boxes}: no boxes, or an empty one; each is left, top, right, bottom in pixels")
    return found


def show(guesses: Sequence[Guess], as_json: bool) -> None:
    """Prints guesses for people, or as JSON."""
    if as_json:
        say_json([guess._asdict() for guess in guesses])
        return
    for guess in guesses:
        say(f"{guess.probability:6.3f}  {guess.text}")
