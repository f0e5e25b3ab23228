"""The vision-and-language pipeline: visual question answering, masked tokens, image-text alignment and grounding.

A run stores how its regions were extracted (regions.json), so that those of any image can be extracted in the same way.
They come from the same detector, from a grid over the same vision network (stored with the model), or from boxes given
by the user.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from comodal.console import print_json, print_line
from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.regions.box_units import BOXES_ARE_NOT_CORNERS, check_source_units, has_inverted_box
from comodal.errors import CheckpointError, DataError, MediaError
from comodal.hardware import Compute, DeviceName, Precision, resolve_compute
from comodal.inference.caption_sampling import SamplingOptions, sample_masked_tokens
from comodal.inference.joint_space.folder_index import FolderIndex, open_folder_index
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.media.user_inputs import check_texts, to_path, to_rgb_array
from comodal.models.checkpoint import find_model_folder, load_model
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.streams import UnimodalEncoding, ViLBERTOutput
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions.extractors import LoadedExtractor
from comodal.regions.region_network import load_extractor_for_images
from comodal.tasks.retrieval.pair_scores import group_by_size
from comodal.tasks.vision_language.answer_files import GQA_HEAD, VQA_HEAD, read_model_vocabulary
from comodal.tasks.vision_language.grounding.refcoco_files import GROUNDING_HEAD
from comodal.tasks.vision_language.task_tokens import choose_task_token
from comodal.text_files import read_json, read_json_object

MAX_INPUT_REGIONS = 100
DEFAULT_SAMPLING = SamplingOptions()


class Prediction(NamedTuple):
    """A prediction and its probability."""

    text: str
    probability: float


class GroundedBox(NamedTuple):
    """A box in pixels, left, top, right, bottom, and the probability that the phrase refers to it."""

    box: tuple[float, ...]
    probability: float


class TextPredictions(NamedTuple):
    """A text about an image, with the model's predictions."""

    text: str
    answers: Sequence[Prediction] | Sequence[GroundedBox]


class EncodedImage(NamedTuple):
    """An image with its regions, encoded for the model."""

    image: UInt8[np.ndarray, "height width 3"]
    boxes: Float32[np.ndarray, "regions 4"]
    encoding: UnimodalEncoding


@dataclass(frozen=True)
class VisionLanguagePipeline:
    """A ViLBERT or a single stream that takes files, PIL images, arrays and tensors.

    Args:
        folder: Of the run or model.
        model: A ViLBERT or a single stream, with or without heads.
        tokenizer: Its tokenizer.
        regions: The metadata of its regions.
        compute: Device and precision of the model.
    """

    folder: Path
    model: ViLBERT | SingleStream | TaskModel
    tokenizer: WordPieceTokenizer
    regions: dict[str, Any]
    compute: Compute

    @property
    def vilbert(self) -> ViLBERT | SingleStream:
        """The backbone, without the heads."""
        return self.model.vilbert if isinstance(self.model, TaskModel) else self.model

    @cached_property
    def extractor(self) -> LoadedExtractor:
        """The extractor of the regions that the model was trained on; loaded for the first image.

        Raises:
            CheckpointError: There is no such network, or it is damaged, or another one.
            DataError: The regions were extracted by other software.
        """
        return load_extractor_for_images(self.folder, self.regions, str(self.compute.device))

    @torch.inference_mode()
    def encode_image(self, image: Any, boxes: Float32[np.ndarray, "regions 4"] | None = None) -> EncodedImage:
        """Reads an image and extracts its regions.

        Args:
            image: A path, a PIL image, an array (height, width, 3) or a tensor (3, height, width) of bytes.
            boxes: Left, top, right, bottom in pixels; by default the grid of the run's regions.

        Raises:
            DataError: The run's regions cannot be extracted, or boxes are required and not given.
            MediaError: The image cannot be read or is too narrow, or the boxes are not corners in its pixels.
            TypeError: The input is of another type.
        """
        extractor, pixels = self.extractor, to_rgb_array(image)
        try:
            extracted = extractor(pixels, boxes)
        except MediaError as error:
            path = image if isinstance(image, str | Path) else error.path
            raise MediaError(path, error.reason, error.detail) from None
        features, spatials = (
            torch.from_numpy(array)[None].to(self.compute.device)
            for array in prepend_full_image(extracted, MAX_INPUT_REGIONS)
        )
        with self.compute.autocast():
            encoding = self.vilbert.encode_image(features, spatials, None)
        return EncodedImage(pixels, extracted.boxes[:MAX_INPUT_REGIONS], encoding)

    def to_encoded_image(self, image: Any) -> EncodedImage:
        """The encoded image, from `encode_image` or from an image."""
        return image if isinstance(image, EncodedImage) else self.encode_image(image)

    @torch.inference_mode()
    def fuse_texts(
        self, texts: Sequence[Sequence[int]], encoded_image: EncodedImage, head: str | None = None
    ) -> ViLBERTOutput:
        """The output of both streams for texts of one length with an image, for a head if there are task tokens."""
        if self.vilbert.config.task_tokens and head is None:
            raise DataError(
                f"{self.folder} has task tokens (12-in-1), and none for this; ask it questions of its tasks"
            )
        token_ids = torch.tensor([list(text_ids) for text_ids in texts], device=self.compute.device)
        with self.compute.autocast():
            task_token = None if head is None else choose_task_token(self.vilbert.config, head, None)
            task_ids = None if task_token is None else torch.full_like(token_ids[:, 0], task_token)
            text = self.vilbert.encode_text(token_ids, torch.zeros_like(token_ids), None, task_ids)
            image_rows = torch.zeros(len(token_ids), dtype=torch.int64, device=token_ids.device)
            output = self.vilbert.fuse(text, encoded_image.encoding.select_rows(image_rows))
        return ViLBERTOutput(*(tensor.float() for tensor in output))

    def compute_head_scores(
        self, head: str, task: str, token_ids: Sequence[int], encoded_image: EncodedImage
    ) -> Tensor:
        """The scores of a head.

        Raises:
            CheckpointError: The model has no such head.
        """
        if not isinstance(self.model, TaskModel) or head not in self.model.heads:
            raise CheckpointError(f"{self.folder} is not fine-tuned for {task}: run `comodal train {task}`")
        output = self.fuse_texts([token_ids], encoded_image, head)
        with torch.inference_mode():
            return self.model.heads(head, *output, encoded_image.encoding.mask)[0].float().cpu()

    def ask(self, image: Any, question: str, top_k: int = 5) -> list[Prediction]:
        """The likeliest answers to a question about an image or an encoded image; the probabilities are independent."""
        heads = {head.name: head for head in self.model.config.heads} if isinstance(self.model, TaskModel) else {}
        head = VQA_HEAD if VQA_HEAD in heads or GQA_HEAD not in heads else GQA_HEAD
        scores = self.compute_head_scores(
            head, "vqa", self.tokenizer.encode(question), self.to_encoded_image(image)
        ).sigmoid()
        answers = read_model_vocabulary(self.folder, heads[head])
        best = select_top_k(scores, top_k)
        return [Prediction(answers[i], p) for p, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]

    def fill_mask(self, image: Any, text: str, top_k: int = 5) -> list[list[Prediction]]:
        """The likeliest tokens for each [MASK] of a text.

        Raises:
            TypeError: The image or the text is of another type.
            ValueError: The text has no [MASK].
        """
        check_texts([text])
        token_ids = self.tokenizer.encode(text)
        masked_positions = [
            position for position, token_id in enumerate(token_ids) if token_id == self.tokenizer.mask_id
        ]
        if not masked_positions:
            problem = f"has no [MASK] in its first {len(token_ids) - 2} tokens; later tokens are cut off"
            raise ValueError(f"{textwrap.shorten(repr(text), 80)} {problem}")
        output = self.fuse_texts([token_ids], self.to_encoded_image(image))
        with torch.inference_mode():
            probabilities = (
                self.vilbert.compute_token_logits(output.token_states[0, masked_positions])[:, : self.tokenizer.size]
                .float()
                .softmax(1)
            )
        best = select_top_k(probabilities, top_k)
        return [
            [Prediction(self.tokenizer.vocabulary[i], p) for p, i in zip(*row, strict=True)]
            for row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]

    def score(self, image: Any, texts: str | Sequence[str]) -> list[Prediction]:
        """The probability that each text matches the image; texts of one length are computed in one batch.

        Raises:
            TypeError: The image or a text is of another type.
        """
        texts = [texts] if isinstance(texts, str) else texts
        check_texts(texts)
        encoded_image = self.to_encoded_image(image)
        token_ids = [self.tokenizer.encode(text) for text in texts]
        lengths, probabilities = np.array([len(text) for text in token_ids], np.int64), np.zeros(len(texts))
        for rows in group_by_size(lengths, self.compute.sequence_batch):
            output = self.fuse_texts([token_ids[i] for i in rows.tolist()], encoded_image)
            with torch.inference_mode():
                logits = self.vilbert.alignment_head(output.pooled_text, output.pooled_vision)
            probabilities[rows] = logits.float().softmax(1)[:, 0].cpu().numpy()
        return [Prediction(text, float(p)) for text, p in zip(texts, probabilities, strict=True)]

    @torch.inference_mode()
    def caption(self, image: Any, options: SamplingOptions = DEFAULT_SAMPLING) -> list[Prediction]:
        """Captions sampled from the masked language model, with the probability that each matches the image.

        The likeliest match comes first. Captions are as long as asked for, and contain no special tokens.

        Raises:
            ValueError: The model has too few positions for so many tokens.
        """
        encoded_image, tokenizer, config = self.to_encoded_image(image), self.tokenizer, self.vilbert.config
        max_tokens = config.positions - config.first_position - 2
        if options.num_tokens > max_tokens:
            raise ValueError(f"num_tokens ({options.num_tokens}): this model has positions for {max_tokens} tokens")
        allowed = torch.zeros(config.vocabulary, dtype=torch.bool)
        allowed[torch.from_numpy(tokenizer.ordinary_ids)] = True

        def compute_logits(texts: Tensor, positions: Tensor) -> Tensor:
            framed = [[tokenizer.cls_id, *token_ids, tokenizer.sep_id] for token_ids in texts.tolist()]
            states = self.fuse_texts(framed, encoded_image).token_states
            return self.vilbert.compute_token_logits(states[torch.arange(len(states)), positions + 1])

        sampled = sample_masked_tokens(compute_logits, tokenizer.mask_id, allowed, options)
        captions = [tokenizer.decode(token_ids) for token_ids in sampled.tolist()]
        return sorted(self.score(encoded_image, captions), key=lambda prediction: -prediction.probability)

    def ground(self, image: Any, phrase: str, top_k: int = 1) -> list[GroundedBox]:
        """The boxes that a phrase most likely refers to; the whole image may be one."""
        encoded_image = self.to_encoded_image(image)
        scores = self.compute_head_scores(
            GROUNDING_HEAD.name, "grounding", self.tokenizer.encode(phrase), encoded_image
        ).sigmoid()
        height, width = encoded_image.image.shape[:2]
        boxes = np.concatenate([[[0.0, 0.0, width, height]], encoded_image.boxes])
        best = select_top_k(scores, top_k)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        return [GroundedBox((*map(float, boxes[i]),), p) for p, i in pairs]

    def open_index(self, folder: Path | str, index: Path | str | None = None) -> FolderIndex:
        """A searcher for the images of a folder; its index is built or updated first.

        Args:
            folder: The folder of images.
            index: Folder of the index; by default .comodal-index in the folder.

        Raises:
            DataError: There are no images, or the index is damaged, of another kind, or cannot be written.
            CheckpointError: The model is fine-tuned for another task.

        Examples:
            comodal.load("runs/vilbert").open_index("photos/").search("a dog on a beach").best
        """
        return open_folder_index(self, folder, index)


def load_vision_language(
    run: Path | str, device: DeviceName = "auto", precision: Precision = "auto"
) -> VisionLanguagePipeline:
    """Loads a run or model folder of a ViLBERT as a pipeline.

    Args:
        run: The folder.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Raises:
        CheckpointError: There is no ViLBERT, or it has no metadata of its regions.
        DataError: Its vocabulary is missing.
    """
    run = to_path(run)
    model, path = load_model(run), find_model_folder(run) / "regions.json"
    if not isinstance(model, ViLBERT | SingleStream | TaskModel):
        raise CheckpointError(f"{run}: a {type(model).__name__}; this needs a ViLBERT")
    regions = read_json_object(path, CheckpointError) if path.is_file() else {}
    if not isinstance(regions.get("provenance"), dict):
        raise CheckpointError(f"{path} (the regions of the training data) is missing or has no provenance")
    compute = resolve_compute(device, precision)
    return VisionLanguagePipeline(run, model.to(compute.device), WordPieceTokenizer.read(run), regions, compute)


def select_top_k(scores: Tensor, top_k: int) -> Any:
    """The highest scores of the last dimension with their indices, as `topk`; fewer if there are no more.

    Raises:
        ValueError: top_k is not positive.
    """
    if top_k < 1:
        raise ValueError(f"top_k ({top_k}) must be at least 1")
    return scores.topk(min(top_k, scores.shape[-1]))


def read_box_corners(boxes: Path | None) -> Float32[np.ndarray, "regions 4"] | None:
    """Boxes of a JSON file: a list of left, top, right, bottom."""
    if boxes is None:
        return None
    try:
        corners = np.array(read_json(boxes), np.float32).reshape(-1, 4)
    except (ValueError, TypeError) as error:
        raise DataError(f"{boxes}: not a list of [left, top, right, bottom] ({error})") from error
    if has_inverted_box(corners):
        check_source_units(boxes, {BOXES_ARE_NOT_CORNERS: 1}, (), 0)
    if not len(corners) or not ((corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])).all():
        raise DataError(f"{boxes}: no boxes, or an empty box; a box is left, top, right, bottom in pixels")
    return corners


def print_predictions(predictions: Sequence[Prediction], as_json: bool) -> None:
    """Prints predictions as text or as JSON."""
    if as_json:
        print_json([prediction._asdict() for prediction in predictions])
        return
    for prediction in predictions:
        print_line(f"{prediction.probability:6.3f}  {prediction.text}")
