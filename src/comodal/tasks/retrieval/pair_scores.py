"""Alignment scores of many pairs of texts and images, with each unimodal encoding computed once (ViLBERT, section 3.2).

The layers before the first co-attention layer depend on one modality alone, so unimodal encodings are cached and fused
in every pair. Pairs of equal text length and number of regions form a batch, so there is no padding. Only the alignment
head is computed, and the last layers only at the first tokens. Scores equal those of the whole model up to rounding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from comodal.hardware import Compute
from comodal.models.vilbert.heads import compute_mean_encoding
from comodal.models.vilbert.single_stream import SingleStream
from comodal.models.vilbert.streams import UnimodalEncoding
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.tasks.evaluation.metrics import check_finite_scores
from comodal.tasks.retrieval.gallery import Gallery
from comodal.tasks.vision_language.task_tokens import choose_task_token

CPU_COMPUTE = Compute(torch.device("cpu"))
MAX_CACHE_BYTES = 2**30  # of unimodal encodings per side; others are recomputed when needed
ENCODING_BLOCK_SIZE = 1024  # texts or images per block of summaries
TILE_SIDE = 64  # texts and images per tile of the score matrix


class EncodingCache:
    """The unimodal encodings of one side by index, cached as far as memory allows.

    Args:
        sizes: Number of tokens of each item; items of one size are computed together.
        compute_encodings: Computes the encodings of some items of one size.
        batch_size: Number of items per batch.
    """

    def __init__(
        self,
        sizes: Int64[np.ndarray, "items"],
        compute_encodings: Callable[[Sequence[int]], Float[Tensor, "batch tokens dim"]],
        batch_size: int,
    ) -> None:
        self.sizes, self.compute_encodings, self.batch_size = sizes, compute_encodings, batch_size
        self.cached: dict[int, Tensor] = {}
        self.free_bytes = MAX_CACHE_BYTES

    def get_encodings(self, indices: Int64[np.ndarray, "some"]) -> dict[int, Float[Tensor, "tokens dim"]]:
        """The unimodal encodings of some items."""
        unique_indices = np.unique(indices)
        encodings = {index: self.cached[index] for index in unique_indices.tolist() if index in self.cached}
        missing = np.array([index for index in unique_indices.tolist() if index not in encodings], np.int64)
        for rows in group_by_size(self.sizes[missing], self.batch_size):
            batch = missing[rows].tolist()
            for index, tokens in zip(batch, self.compute_encodings(batch).unbind(), strict=True):
                encodings[index] = tokens
                if tokens.nbytes <= self.free_bytes:
                    self.cached[index] = tokens
                    self.free_bytes -= tokens.nbytes
        return encodings


ScoreType = Literal["alignment", "contrastive"]


@dataclass(frozen=True)
class RankingOptions:
    """How pairs are scored and ranked.

    Args:
        zero_shot: Score pairs by pretraining's alignment head, even if fine-tuned; required for a pretrained model.
        scores: "contrastive" ranks by the cosine of the unimodal encodings of text and image, and requires a model
            trained with `--contrastive-weight`; each text and image is encoded once. "alignment" scores every
            pair with the whole model.
        rerank: Number of top candidates of the first stage that the model scores; without it, the model scores all.
        first_stage: Run or model folder of a dual encoder of the same regions, the first stage of --rerank; by default
            two projections are fitted on the captions of the training split.
        batch_size: Pairs per forward pass; by default chosen for the device.
        seed: Seed of the untrained network and of the first stage.
    """

    zero_shot: bool = False
    scores: ScoreType = "alignment"
    rerank: int | None = None
    first_stage: Path | None = None
    batch_size: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises ValueError if the options contradict each other."""
        if self.rerank is not None and self.rerank < 1:
            raise ValueError(f"rerank ({self.rerank}) must be at least 1")
        if self.scores == "contrastive" and self.rerank is not None:
            raise ValueError("--scores contrastive ranks everything: leave out --rerank")
        if self.first_stage is not None and self.rerank is None:
            raise ValueError("--first-stage is for two-stage retrieval: add --rerank")


class PairScorer:
    """Matching scores of texts and images, for any pairs of a gallery.

    The log odds of a match order pairs as the probability does, and do not saturate in fp32 as it does.

    Args:
        model: In evaluation mode.
        gallery: Texts and images.
        compute: Device and precision; the model is moved to the device. bf16 uses autocast; the alignment head is
            always fp32.
        batch_size: Pairs per forward pass; None chooses it for the device.
        score: Scores both pooled streams in fp32; by default the log odds of the alignment head.
        task_token: Task token, for a model that has them (12-in-1); by default that of Flickr30k retrieval.
    """

    def __init__(
        self,
        model: ViLBERT | SingleStream,
        gallery: Gallery,
        compute: Compute = CPU_COMPUTE,
        batch_size: int | None = None,
        score: Callable[[Tensor, Tensor], Float32[Tensor, "batch"]] | None = None,
        task_token: int | None = None,
    ) -> None:
        batch_size = compute.sequence_batch if batch_size is None else batch_size
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be positive")
        self.model, self.gallery, self.batch_size = model.to(compute.device), gallery, batch_size
        self.task_token = choose_task_token(model.config, "score", task_token)
        self.compute, self.device, self.score = compute, compute.device, score or self.compute_log_odds
        self.texts = EncodingCache(gallery.lengths, self._encode_texts, batch_size)
        self.images = EncodingCache(gallery.counts, self._encode_images, batch_size)

    @torch.inference_mode()
    def score_pairs(
        self, texts: Int64[np.ndarray, "pairs"], images: Int64[np.ndarray, "pairs"]
    ) -> Float32[np.ndarray, "pairs"]:
        """The score of each pair."""
        scores, score_parts, order = np.empty(len(texts), np.float32), [], []
        with self.compute.autocast():
            text_encodings, image_encodings = self.texts.get_encodings(texts), self.images.get_encodings(images)
            sizes = self.gallery.lengths[texts] * (1 + self.gallery.counts.max()) + self.gallery.counts[images]
            for rows in group_by_size(sizes, self.batch_size):
                text_tokens = torch.stack([text_encodings[index] for index in texts[rows].tolist()])
                regions = torch.stack([image_encodings[index] for index in images[rows].tolist()])
                score_parts.append(self._score_fused(text_tokens, regions))
                order.append(rows)
        if score_parts:
            scores[np.concatenate(order)] = (
                torch.cat(score_parts).cpu().numpy()
            )  # the only synchronization with the GPU
        check_finite_scores(scores, "scores of texts and images")
        return scores

    def score_all_pairs(self, track: Callable[[Sequence], Iterator] = iter) -> Float32[np.ndarray, "texts images"]:
        """The scores of all pairs of the gallery, in tiles of similar text length and number of regions."""
        lengths, counts = self.gallery.lengths, self.gallery.counts
        scores = np.empty((len(lengths), len(counts)), np.float32)
        tiles = [(texts, images) for texts in tile_pairs(lengths) for images in tile_pairs(counts)]
        for texts, images in track(tiles):
            sides = np.repeat(texts, len(images)), np.tile(images, len(texts))
            scores[np.ix_(texts, images)] = self.score_pairs(*sides).reshape(len(texts), len(images))
        return scores

    @torch.inference_mode()
    def compute_summaries(
        self, side: Literal["texts", "images"], indices: Int64[np.ndarray, "some"]
    ) -> Float[Tensor, "some _"]:
        """A vector for each text or image: the mean and the maximum of its unimodal encoding."""
        rows = []
        with self.compute.autocast():
            for part in np.array_split(indices, max(1, len(indices) // ENCODING_BLOCK_SIZE)):
                encoding_by_index = (self.texts if side == "texts" else self.images).get_encodings(part)
                encodings = [encoding_by_index[index].float() for index in part.tolist()]
                rows += [torch.cat([encoding.mean(0), encoding.amax(0)]) for encoding in encodings]
        return torch.stack(rows).cpu()

    @torch.inference_mode()
    def compute_contrastive_matrix(self) -> Float32[np.ndarray, "texts images"]:
        """The cosines of all texts and images of the gallery in the contrastive embedding space."""
        assert isinstance(self.model, ViLBERT) and self.model.contrastive_head is not None
        head, embeddings = self.model.contrastive_head, []
        for cache, embed in ((self.texts, head.embed_text), (self.images, head.embed_image)):
            with self.compute.autocast():
                indices = np.arange(len(cache.sizes))
                encoding_parts = [
                    cache.get_encodings(part)
                    for part in np.array_split(indices, max(1, len(indices) // ENCODING_BLOCK_SIZE))
                ]
                means = [
                    compute_mean_encoding(tokens[None], None)
                    for part in encoding_parts
                    for _, tokens in sorted(part.items())
                ]
                embeddings.append(embed(torch.cat(means)).float())
        scores = (embeddings[0] @ embeddings[1].T).cpu().numpy()
        check_finite_scores(scores, "similarities of texts and images")
        return scores

    def _score_fused(
        self, text_tokens: Float[Tensor, "batch tokens dim"], regions: Float[Tensor, "batch regions vision_dim"]
    ) -> Float32[Tensor, "batch"]:
        text, vision = self.model.fuse_pooled(UnimodalEncoding(text_tokens, None), UnimodalEncoding(regions, None))
        with torch.autocast(self.device.type, enabled=False):
            return self.score(text.float(), vision.float())

    def compute_log_odds(
        self, text: Float32[Tensor, "batch joint"], vision: Float32[Tensor, "batch joint"]
    ) -> Float32[Tensor, "batch"]:
        """The log odds of match against mismatch."""
        logits = self.model.alignment_head(text, vision)
        return logits[:, 0] - logits[:, 1]

    def _encode_texts(self, indices: Sequence[int]) -> Float[Tensor, "batch tokens dim"]:
        token_ids = torch.stack([self.gallery.get_token_ids(index) for index in indices]).to(self.device)
        task_ids = None if self.task_token is None else torch.full_like(token_ids[:, 0], self.task_token)
        return self.model.encode_text(token_ids, torch.zeros_like(token_ids), None, task_ids).hidden_states

    def _encode_images(self, indices: Sequence[int]) -> Float[Tensor, "batch regions dim"]:
        images = [self.gallery.get_image(index) for index in indices]
        features = torch.stack([image.features for image in images]).to(self.device)
        spatials = torch.stack([image.spatials for image in images]).to(self.device)
        return self.model.encode_image(features, spatials, None).hidden_states


def tile_pairs(sizes: Int64[np.ndarray, "items"]) -> list[Int64[np.ndarray, "some"]]:
    """All indices, in tiles of similar size."""
    order = np.argsort(sizes, kind="stable")
    return [order[start : start + TILE_SIDE] for start in range(0, len(order), TILE_SIDE)]


def group_by_size(sizes: Int64[np.ndarray, "items"], max_size: int) -> Iterator[Int64[np.ndarray, "some"]]:
    """Indices of items of one size, in groups of limited length; neighbors stay in one group."""
    order = np.argsort(sizes, kind="stable")
    for group in np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1):
        for start in range(0, len(group), max_size):
            yield group[start : start + max_size]
