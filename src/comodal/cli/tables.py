"""The commands: the table of those with a function of their own, and `evaluate TASK` and `convert FORMAT` from the
registries.
"""

from comodal.registry import CHECKPOINT_READERS, TASKS, RegistryEntry

COMMANDS = {
    "demo": RegistryEntry(
        "comodal.demo.demo:run_demo", "synthetic data, training, evaluation and a report, in minutes"
    ),
    "synthesize": RegistryEntry(
        "comodal.synthetic.synthesize:synthesize", "synthetic videos with audio, images with captions"
    ),
    "prepare videos": RegistryEntry(
        "comodal.data.shards.ingest:prepare_videos", "a folder or a list of videos -> shards of clips"
    ),
    "prepare pairs": RegistryEntry(
        "comodal.data.shards.paired_files:prepare_pairs", "images and audio in class folders -> shards"
    ),
    "prepare regions": RegistryEntry(
        "comodal.regions.prepare_regions:prepare_regions", "features or images -> a region store"
    ),
    "prepare boxes": RegistryEntry(
        "comodal.tasks.vision_language.grounding.refcoco_files:prepare_boxes",
        "COCO's objects or detections -> boxes for regions",
    ),
    "prepare tokens": RegistryEntry(
        "comodal.regions.visual_tokens:prepare_tokens", "a region store -> a visual token for each region"
    ),
    "extract": RegistryEntry("comodal.regions.extract:extract_regions", "a folder of images -> a region store"),
    "env": RegistryEntry("comodal.environment:env", "the detected hardware, and what will be used"),
    "inspect": RegistryEntry(
        "comodal.analysis.inspect_path:inspect", "what a shard folder, run, checkpoint or embedding is"
    ),
    "doctor": RegistryEntry(
        "comodal.inference.doctor:diagnose_embedding", "which frontend and network made an embedding, and how exactly"
    ),
    "results": RegistryEntry(
        "comodal.tasks.evaluation.results_card:results", "the results cards of several evaluations -> one table"
    ),
    "report": RegistryEntry(
        "comodal.analysis.pages.report:write_report", "curves, scores, predictions and units of a run: a page"
    ),
    "match": RegistryEntry(
        "comodal.inference.match:match", "do the image or video and the audio correspond, when, and where"
    ),
    "ask": RegistryEntry("comodal.inference.vision_language_commands:ask", "an image and a question -> answers"),
    "fill": RegistryEntry(
        "comodal.inference.vision_language_commands:fill", "an image and a sentence with [MASK] -> tokens"
    ),
    "align": RegistryEntry(
        "comodal.inference.vision_language_commands:align", "an image and texts -> how likely each matches it"
    ),
    "ground": RegistryEntry(
        "comodal.inference.vision_language_commands:ground", "an image and a phrase -> the box that it refers to"
    ),
    "caption": RegistryEntry(
        "comodal.inference.vision_language_commands:caption", "an image -> captions sampled from the pretrained model"
    ),
    "search": RegistryEntry(
        "comodal.inference.image_search.search:search", "a folder of images and a text -> the images that match it"
    ),
    "export": RegistryEntry(
        "comodal.runtimes.export:export", "a model's networks -> ONNX, OpenVINO or torch.export, verified"
    ),
    "share": RegistryEntry("comodal.hub:share_model", "a model as a folder to publish, with a model card"),
    "push": RegistryEntry("comodal.hub:push_to_hub", "a model -> the Hugging Face hub"),
    "pull": RegistryEntry("comodal.hub:pull_from_hub", "the Hugging Face hub -> a model"),
    "embed audio": RegistryEntry(
        "comodal.inference.embed_files:embed_audio", "audio files -> one vector per hop, .npz"
    ),
    "embed image": RegistryEntry("comodal.inference.embed_files:embed_image", "images -> one vector each, .npz"),
    "embed video": RegistryEntry(
        "comodal.inference.embed_files:embed_video", "videos -> vectors of audio and frames, .npz"
    ),
}
TRAIN_FUNCTION = "comodal.training.run:train"  # trains every recipe; its parameters are options of `comodal train`
COMMAND_GROUPS = {
    "prepare": "videos, images, features -> training data",
    "evaluate": "scores on labeled data sets",
    "embed": "files -> embeddings",
    "convert": "published weights -> models of comodal",
    "train": "train a recipe: comodal train RECIPE --data DATA --out RUN",
}
GROUP_REGISTRIES = {"evaluate": TASKS, "convert": CHECKPOINT_READERS}


def find_command(name: str) -> RegistryEntry | None:
    """The entry of a command, such as `embed audio` or `evaluate esc50`; None if there is no such command."""
    group, _, rest = name.partition(" ")
    return GROUP_REGISTRIES[group].get(rest) if group in GROUP_REGISTRIES else COMMANDS.get(name)


def get_command_target(name: str) -> str:
    """The function of an existing command, as `module:function`."""
    entry = find_command(name)
    assert entry is not None, name
    return entry.target


def list_all_commands() -> dict[str, RegistryEntry]:
    """All commands with their entries; `train` is not among them."""
    registered = {
        f"{group} {name}": entry for group, table in GROUP_REGISTRIES.items() for name, entry in table.items()
    }
    return COMMANDS | registered
