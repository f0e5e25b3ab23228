"""A ViLBERT with heads for tasks (ViLBERT, section 3.3; 12-in-1): what fine-tuning trains and what then answers."""

from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float, Int64
from torch import Tensor, nn

from comodal.errors import CheckpointError
from comodal.models.checkpoint import load_model
from comodal.models.vilbert import vilbert
from comodal.models.vilbert.heads import Head, TaskHeads
from comodal.models.vilbert.transformer import Mask
from comodal.models.vilbert.vilbert import ViLBERT


@dataclass(frozen=True)
class TaskModelConfig:
    """A ViLBERT and its heads.

    Args:
        vilbert: The network below the heads.
        heads: One or more, each of another name.
    """

    vilbert: vilbert.ViLBERTConfig
    heads: tuple[Head, ...]

    def __post_init__(self) -> None:
        names = [head.name for head in self.heads]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"heads {names}: name one or more, each once")

    def head(self, name: str) -> Head:
        """The head of a name."""
        found = [head for head in self.heads if head.name == name]
        if not found:
            raise ValueError(f"the model has no head {name!r}; it has {', '.join(head.name for head in self.heads)}")
        return found[0]


class TaskModel(nn.Module):
    """Texts beside images; each image is looked at once, however many texts meet it."""

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
        """The scores of one head.

        Args:
            head: Its name.
            words: Numbers of word pieces.
            segments: Which of two texts a word belongs to.
            words_attended: Where there are words (True or 1); None where nothing is padding.
            regions: Features (or visual tokens) of the images; row 0 is the whole image.
            locations: Of the regions.
            regions_attended: Where there are regions (True or 1); None where nothing is padding.
            images: The image that each text meets.
            tasks: Of models with task tokens.

        Returns:
            (texts, outputs) of heads on pooled streams, (texts / 2, outputs) of pairs, (texts, regions) of regions.
        """
        text = self.vilbert.text_prefix(words, segments, words_attended, tasks)
        vision = self.vilbert.vision_prefix(regions, locations, regions_attended).take(images)
        output = self.vilbert.join(text, vision)
        return self.heads(head, output.words, output.regions, output.text, output.vision, vision.attended)


def load_task_model(path: Path) -> TaskModel:
    """Reads a ViLBERT with heads from a run's or a model's folder, in evaluation mode.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is another kind of model.
    """
    model = load_model(path)
    if not isinstance(model, TaskModel):
        kind = type(model).__name__
        raise CheckpointError(f"{path}: a {kind}, which has no head for a task; fine-tune it with `comodal train TASK`")
    return model
