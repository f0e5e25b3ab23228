"""The commands: the table of those with a function of their own, and `evaluate TASK` and `convert FORMAT` from the
registries.
"""

from comodal.registry import CHECKPOINT_READERS, TASKS, RegistryEntry

COMMANDS = {
    "demo": RegistryEntry(
        "comodal.demo.demo:run_demo", "train and evaluate small models on synthetic data, with a report"
    ),
    "synthesize": RegistryEntry(
        "comodal.synthetic.synthesize:synthesize", "make synthetic videos with audio, and images with captions"
    ),
    "prepare videos": RegistryEntry(
        "comodal.data.shards.ingest:prepare_videos", "make shards of clips from a folder or a list of videos"
    ),
    "prepare pairs": RegistryEntry(
        "comodal.data.shards.paired_files:prepare_pairs", "make shards of pairs from class folders of images and audio"
    ),
    "prepare regions": RegistryEntry(
        "comodal.regions.prepare_regions:prepare_regions", "make a region store from published features or from images"
    ),
    "prepare boxes": RegistryEntry(
        "comodal.tasks.vision_language.grounding.prepare_boxes:prepare_boxes",
        "convert COCO's objects, detections or candidate boxes to boxes for `extract`",
    ),
    "prepare tokens": RegistryEntry(
        "comodal.regions.visual_tokens:prepare_tokens", "add a visual token to each region of a store"
    ),
    "extract": RegistryEntry("comodal.regions.extract:extract_regions", "extract a region store from images"),
    "env": RegistryEntry("comodal.environment:env", "show the detected hardware, and what will be used"),
    "inspect": RegistryEntry(
        "comodal.analysis.inspect_path:inspect", "describe a shard folder, run, checkpoint or embedding"
    ),
    "identify": RegistryEntry(
        "comodal.inference.identify_embedding:identify_embedding",
        "find the network and the frontend that made an embedding",
    ),
    "results": RegistryEntry(
        "comodal.tasks.evaluation.results_card:results", "combine the results cards of several evaluations in one table"
    ),
    "report": RegistryEntry(
        "comodal.analysis.reports.report:write_report", "write a page about a run: curves, scores, predictions, units"
    ),
    "match": RegistryEntry("comodal.inference.match:match", "predict whether an image or a video corresponds to audio"),
    "ask": RegistryEntry("comodal.inference.vision_language_commands:ask", "answer a question about an image"),
    "fill": RegistryEntry(
        "comodal.inference.vision_language_commands:fill", "predict the [MASK] tokens of a sentence about an image"
    ),
    "align": RegistryEntry(
        "comodal.inference.vision_language_commands:align", "score how well texts describe an image"
    ),
    "ground": RegistryEntry(
        "comodal.inference.vision_language_commands:ground", "find the box in an image that a phrase refers to"
    ),
    "caption": RegistryEntry(
        "comodal.inference.vision_language_commands:caption", "an image -> captions sampled from the pretrained model"
    ),
    "search": RegistryEntry(
        "comodal.inference.image_search.search_command:search",
        "find images, audio and videos of a folder by a text, an image or a sound",
    ),
    "export": RegistryEntry(
        "comodal.runtimes.export:export", "export a model to ONNX, OpenVINO or torch.export, and verify it"
    ),
    "share": RegistryEntry("comodal.hub:share_model", "write a model as a folder to publish, with a model card"),
    "push": RegistryEntry("comodal.hub:push_to_hub", "upload a model to the Hugging Face hub"),
    "pull": RegistryEntry("comodal.hub:pull_from_hub", "download a model from the Hugging Face hub"),
    "embed audio": RegistryEntry(
        "comodal.inference.embed_files:embed_audio", "embed audio files: one vector per hop (.npz)"
    ),
    "embed image": RegistryEntry("comodal.inference.embed_files:embed_image", "embed images: one vector each (.npz)"),
    "embed video": RegistryEntry(
        "comodal.inference.embed_files:embed_video", "embed the audio and the frames of videos (.npz)"
    ),
}
TRAIN_FUNCTION = "comodal.training.run:train"  # trains every recipe; its parameters are options of `comodal train`
COMMAND_GROUPS = {
    "prepare": "prepare training data from videos, images or features",
    "evaluate": "evaluate a model on a labeled data set",
    "embed": "embed files",
    "convert": "convert published weights to models of comodal",
    "train": "train a recipe: comodal train RECIPE --data DATA --out RUN",
}
COMMAND_TOPICS = {  # the first words of commands, in the order of the help
    "getting started": ("demo", "env", "list", "help"),
    "data": ("synthesize", "prepare", "extract"),
    "training and evaluation": ("train", "evaluate", "results", "report"),
    "use of a model": ("match", "ask", "fill", "caption", "align", "ground", "search", "embed"),
    "files": ("inspect", "identify", "convert", "export", "share", "push", "pull"),
}
GROUP_REGISTRIES = {"evaluate": TASKS, "convert": CHECKPOINT_READERS}


def get_command_target(name: str) -> str:
    """The function of a command, as `module:function`."""
    group, _, rest = name.partition(" ")
    return (GROUP_REGISTRIES[group][rest] if group in GROUP_REGISTRIES else COMMANDS[name]).target


def list_all_commands() -> dict[str, RegistryEntry]:
    """All commands with their entries; `train` is not among them."""
    registered = {
        f"{group} {name}": entry for group, table in GROUP_REGISTRIES.items() for name, entry in table.items()
    }
    return COMMANDS | registered
