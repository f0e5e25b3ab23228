"""A ViLBERT or a single stream with task heads (ViLBERT, section 3.3; 12-in-1), for fine-tuning and inference."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.pretrained import PretrainedModel
from comodal.models.vilbert.heads import Head, TaskHeads
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.transformer import Mask
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig


@dataclass(frozen=True)
class TaskModelConfig:
    """A backbone and its heads.

    Args:
        vilbert: Configuration of the backbone: a ViLBERT or a single stream.
        heads: One or more heads with distinct names.
    """

    vilbert: ViLBERTConfig | SingleStreamConfig
    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"heads {names}: one or more distinct names are required")


class TaskModel(PretrainedModel, nn.Module):
    """A backbone with task heads; each image is encoded once, however many texts it is paired with."""

    def __init__(self, config: TaskModelConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.vilbert
        self.vilbert = build_backbone(sizes)
        self.heads = TaskHeads(sizes.text.dim, sizes.vision.dim, sizes.joint_dim, sizes.fusion, config.heads)

    def forward(
        self,
        head: str,
        token_ids: Int64[Tensor, "texts length"],
        token_types: Int64[Tensor, "texts length"],
        token_mask: Mask,
        region_features: Float[Tensor, "images regions features"] | Int64[Tensor, "images regions"],
        spatials: Float[Tensor, "images regions 5"],
        region_mask: Mask,
        image_indices: Int64[Tensor, "texts"],
        task_ids: Int64[Tensor, "texts"] | None = None,
    ) -> Float[Tensor, "rows *outputs"]:
        """The outputs of one head.

        Args:
            head: Name of the head.
            token_ids: Token ids.
            token_types: Token type (segment) ids.
            token_mask: Attention mask of the tokens (True or 1 for a token); None without padding.
            region_features: Features (or visual tokens) of the images; row 0 is the whole image.
            spatials: Left, top, right, bottom and area of the regions, as fractions of the image.
            region_mask: Attention mask of the regions (True or 1 for a region); None without padding.
            image_indices: Index of the image of each text.
            task_ids: Task ids, for models with task tokens.

        Returns:
            (texts, outputs) of heads on pooled streams, (texts / 2, outputs) of pairs, (texts, regions) of regions.
        """
        text = self.vilbert.encode_text(token_ids, token_types, token_mask, task_ids)
        vision = self.vilbert.encode_image(region_features, spatials, region_mask).select_rows(image_indices)
        output = self.vilbert.fuse(text, vision)
        return self.heads(
            head, output.token_states, output.region_states, output.pooled_text, output.pooled_vision, vision.mask
        )


def build_backbone(config: ViLBERTConfig | SingleStreamConfig) -> ViLBERT | SingleStream:
    """The randomly initialized backbone of a configuration."""
    return SingleStream(config) if isinstance(config, SingleStreamConfig) else ViLBERT(config)


def load_task_model(path: Path) -> TaskModel:
    """Loads a ViLBERT with task heads from a run folder or model folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, TaskModel):
        kind = type(model).__name__
        raise CheckpointError(f"{path}: a {kind}, which has no task head; fine-tune it with `comodal train TASK`")
    return model
