"""A ViLBERT with task heads (ViLBERT, section 3.3; 12-in-1), for fine-tuning and inference."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.pretrained import PretrainedModel
from comodal.models.vilbert import vilbert
from comodal.models.vilbert.heads import Head, TaskHeads
from comodal.models.vilbert.transformer import Mask
from comodal.models.vilbert.vilbert import ViLBERT


@dataclass(frozen=True)
class TaskModelConfig:
    """A ViLBERT and its heads.

    Args:
        vilbert: Configuration of the backbone.
        heads: One or more heads with distinct names.
    """

    vilbert: vilbert.ViLBERTConfig
    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"heads {names}: name one or more, each once")

    def head(self, name: str) -> Head:
        """The head of the given name."""
        found = [head for head in self.heads if head.name == name]
        if not found:
            raise ValueError(f"the model has no head {name!r}; it has {', '.join(head.name for head in self.heads)}")
        return found[0]


class TaskModel(PretrainedModel, nn.Module):
    """A ViLBERT with task heads; each image is encoded once, however many texts it is paired with."""

    def __init__(self, config: TaskModelConfig) -> None:
        super().__init__()
        self.config = config
        sizes = config.vilbert
        self.vilbert = ViLBERT(sizes)
        self.heads = TaskHeads(sizes.text.dim, sizes.vision.dim, sizes.joint_dim, sizes.fusion, config.heads)

    def forward(
        self,
        head: str,
        words: Int64[Tensor, "texts words"],
        segments: Int64[Tensor, "texts words"],
        words_attended: Mask,
        regions: Float[Tensor, "images regions features"] | Int64[Tensor, "images regions"],
        locations: Float[Tensor, "images regions 5"],
        regions_attended: Mask,
        images: Int64[Tensor, "texts"],
        tasks: Int64[Tensor, "texts"] | None = None,
    ) -> Float[Tensor, "rows *outputs"]:
        """The outputs of one head.

        Args:
            head: Name of the head.
            words: Token ids.
            segments: Segment ids.
            words_attended: Attention mask of the tokens (True or 1 for a token); None without padding.
            regions: Features (or visual tokens) of the images; row 0 is the whole image.
            locations: Locations of the regions.
            regions_attended: Attention mask of the regions (True or 1 for a region); None without padding.
            images: Index of the image of each text.
            tasks: Task ids, for models with task tokens.

        Returns:
            (texts, outputs) of heads on pooled streams, (texts / 2, outputs) of pairs, (texts, regions) of regions.
        """
        text = self.vilbert.text_prefix(words, segments, words_attended, tasks)
        vision = self.vilbert.vision_prefix(regions, locations, regions_attended).take(images)
        output = self.vilbert.join(text, vision)
        return self.heads(head, output.words, output.regions, output.text, output.vision, vision.attended)


def load_task_model(path: Path) -> TaskModel:
    """Loads a ViLBERT with task heads from a run folder or model folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, TaskModel):
        kind = type(model).__name__
        raise CheckpointError(f"{path}: a {kind}, which has no head for a task; fine-tune it with `comodal train TASK`")
    return model
