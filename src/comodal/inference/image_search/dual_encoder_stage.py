"""A dual encoder as the first stage of a search by a ViLBERT.

The images are embedded from their files, so that the two models may be trained on regions of different networks.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from comodal.hardware import Compute
from comodal.inference.embedding_search.embedding_index import update_embedding_index
from comodal.inference.embedding_search.embedding_searcher import OpenIndex
from comodal.inference.embedding_search.embedding_spaces import EmbeddingSpace, make_embedding_space
from comodal.inference.embedding_search.neighbors import build_neighbors
from comodal.inference.image_search.search_index import IndexedImages
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline
from comodal.inference.vision_language import VisionLanguagePipeline


@dataclass(frozen=True)
class DualEncoderStage:
    """Ranks images by the cosine of a dual encoder.

    Args:
        space: The dual encoder.
        opened: The vectors of the folder's images.
    """

    space: EmbeddingSpace
    opened: OpenIndex

    def find_nearest(
        self, pipeline: VisionLanguagePipeline, text: str, images: IndexedImages, top_k: int, compute: Compute
    ) -> Int64[np.ndarray, "top_k"]:
        """The indices of the images nearest to a text, the nearest first; all of them are indexed by the ViLBERT too.

        The arguments are those of `FirstStage.find_nearest`.
        """
        del pipeline, compute
        assert self.space.embed_text is not None
        vector, positions = self.space.embed_text(text), {name: i for i, name in enumerate(images.names)}
        names = self.opened.index.listing.names
        num_outside = len(names) - len(positions)  # refused by the ViLBERT's index, or without given boxes
        best = self.opened.find_best_files(vector, top_k + max(0, num_outside))
        found = [positions[names[file]] for file in best.files.tolist() if names[file] in positions]
        return np.array(found[:top_k], np.int64)

    def compute_recall(self, top_k: int, num_images: int) -> None:
        """None: `comodal evaluate retrieval --rerank K --first-stage RUN` measures it."""

    def describe_recall(self, top_k: int, num_images: int) -> str:
        """How to measure the recall, as a sentence."""
        del top_k, num_images
        command = "comodal evaluate retrieval --rerank K --first-stage RUN"
        return f"recall of the dual encoder: `{command}` measures it"


def build_dual_encoder_stage(dual_encoder: DualEncoderPipeline, images: IndexedImages) -> DualEncoderStage:
    """Embeds the images of a folder that are not embedded yet.

    Raises:
        DataError: The images cannot be embedded, or the index is damaged or cannot be written.
    """
    space = make_embedding_space(dual_encoder)
    index = update_embedding_index(images.folder, images.index, space, "image", frozenset({"image"}))
    return DualEncoderStage(space, OpenIndex(index, build_neighbors(index.prefix, index.vectors)))
