"""The registries of the command line: a table of the commands and a table of the recipes, each with its function and a
one-line description.

Functions are named as text, `module:function`, so that reading the tables imports nothing.
"""

from typing import NamedTuple


class CommandEntry(NamedTuple):
    """A command or a recipe: its function and its description."""

    target: str
    about: str


COMMANDS = {
    "demo": CommandEntry("comodal.demo.demo:run_demo", "synthetic data, training, evaluation and a report, in minutes"),
    "synthesize": CommandEntry(
        "comodal.synthetic.synthesize:synthesize", "synthetic videos with audio, images with captions"
    ),
    "prepare videos": CommandEntry(
        "comodal.data.shards.ingest:prepare_videos", "a folder or a list of videos -> shards of clips"
    ),
    "prepare pairs": CommandEntry(
        "comodal.data.shards.paired_files:prepare_pairs", "images and audio in class folders -> shards"
    ),
    "prepare regions": CommandEntry(
        "comodal.regions.prepare_regions:prepare_regions", "features or images -> a region store"
    ),
    "prepare boxes": CommandEntry(
        "comodal.tasks.vision_language.grounding.refcoco_files:prepare_boxes",
        "COCO's objects or detections -> boxes for regions",
    ),
    "prepare tokens": CommandEntry(
        "comodal.regions.visual_tokens:prepare_tokens", "a region store -> a visual token for each region"
    ),
    "extract": CommandEntry("comodal.regions.extract:extract_regions", "a folder of images -> a region store"),
    "env": CommandEntry("comodal.environment:env", "what was detected of this machine, and what will be used"),
    "inspect": CommandEntry(
        "comodal.analysis.inspect_path:inspect", "what a shard folder, run, checkpoint or embedding is"
    ),
    "doctor": CommandEntry(
        "comodal.inference.doctor:diagnose_embedding", "which frontend and network made an embedding, and how exactly"
    ),
    "evaluate esc50": CommandEntry(
        "comodal.tasks.audio.esc50:evaluate_esc50", "ESC-50 or ESC-10, compared with two baselines"
    ),
    "evaluate dcase": CommandEntry(
        "comodal.tasks.audio.dcase:evaluate_dcase", "acoustic scenes of DCASE 2013 or TAU, a submission"
    ),
    "evaluate us8k": CommandEntry("comodal.tasks.audio.urbansound8k:evaluate_us8k", "UrbanSound8K in its ten folds"),
    "evaluate sounds": CommandEntry(
        "comodal.tasks.audio.audio_folders:evaluate_sounds", "a probe on class folders of audio files"
    ),
    "evaluate retrieval": CommandEntry(
        "comodal.tasks.retrieval.caption_retrieval:evaluate_retrieval", "images by captions, captions by images"
    ),
    "evaluate vqa": CommandEntry(
        "comodal.tasks.vision_language.question_answering.vqa:evaluate_vqa",
        "VQA v2: answers, the official accuracy, a submission",
    ),
    "evaluate gqa": CommandEntry(
        "comodal.tasks.vision_language.question_answering.gqa:evaluate_gqa",
        "GQA: answers, accuracy by question type, a submission",
    ),
    "evaluate visual_genome": CommandEntry(
        "comodal.tasks.vision_language.question_answering.visual_genome:evaluate_visual_genome",
        "Visual Genome's questions, scored as VQA",
    ),
    "evaluate vcr": CommandEntry(
        "comodal.tasks.vision_language.vcr:evaluate_vcr", "VCR: answers, rationales, both, a submission"
    ),
    "evaluate grounding": CommandEntry(
        "comodal.tasks.vision_language.grounding.refcoco:evaluate_grounding", "RefCOCO, RefCOCO+, RefCOCOg"
    ),
    "evaluate phrases": CommandEntry(
        "comodal.tasks.vision_language.grounding.flickr30k_entities:evaluate_phrases",
        "Flickr30k Entities: phrase grounding",
    ),
    "evaluate nlvr2": CommandEntry(
        "comodal.tasks.vision_language.nlvr2:evaluate_nlvr2", "is a sentence true of two images"
    ),
    "evaluate entailment": CommandEntry(
        "comodal.tasks.vision_language.snli_ve:evaluate_entailment", "SNLI-VE: visual entailment"
    ),
    "evaluate images": CommandEntry(
        "comodal.tasks.image.linear_classification:evaluate_images", "linear probe on ImageNet or an ImageFolder"
    ),
    "evaluate image_classes": CommandEntry(
        "comodal.tasks.image.image_classification:evaluate_image_classes",
        "images, by a network fine-tuned for their classes",
    ),
    "evaluate sound_classes": CommandEntry(
        "comodal.tasks.audio.audio_classification:evaluate_sound_classes",
        "audio, by a network fine-tuned for its classes",
    ),
    "results": CommandEntry(
        "comodal.tasks.evaluation.results_card:results", "the results cards of several evaluations -> one table"
    ),
    "report": CommandEntry(
        "comodal.analysis.pages.report:write_report", "curves, scores, predictions and units of a run: a page"
    ),
    "match": CommandEntry(
        "comodal.inference.match:match", "do the image or video and the audio correspond, when, and where"
    ),
    "ask": CommandEntry("comodal.inference.vision_language_commands:ask", "an image and a question -> answers"),
    "fill": CommandEntry(
        "comodal.inference.vision_language_commands:fill", "an image and a sentence with [MASK] -> words"
    ),
    "align": CommandEntry(
        "comodal.inference.vision_language_commands:align", "an image and texts -> how likely each matches it"
    ),
    "ground": CommandEntry(
        "comodal.inference.vision_language_commands:ground", "an image and a phrase -> the box that it refers to"
    ),
    "search": CommandEntry(
        "comodal.inference.image_search.search:search", "a folder of images and a text -> the images that match it"
    ),
    "convert vilbert": CommandEntry(
        "comodal.tasks.convert_vilbert_files:convert",
        "ViLBERT's published weights -> a model, and back",
    ),
    "convert openl3": CommandEntry(
        "comodal.inference.openl3_files:convert_openl3", "OpenL3's published weights -> a model"
    ),
    "convert detector": CommandEntry(
        "comodal.regions.convert_detector:convert_detector", "a detector's weights -> a model"
    ),
    "export": CommandEntry(
        "comodal.runtimes.export:export", "a model's networks -> ONNX, OpenVINO or torch.export, verified"
    ),
    "share": CommandEntry("comodal.hub:save_pretrained", "a model as a folder to publish, with a model card"),
    "push": CommandEntry("comodal.hub:push_to_hub", "a model -> the Hugging Face hub"),
    "pull": CommandEntry("comodal.hub:from_pretrained", "the Hugging Face hub -> a model"),
    "embed audio": CommandEntry("comodal.inference.embed_files:embed_audio", "audio files -> one vector per hop, .npz"),
    "embed image": CommandEntry("comodal.inference.embed_files:embed_image", "images -> one vector each, .npz"),
    "embed video": CommandEntry(
        "comodal.inference.embed_files:embed_video", "videos -> vectors of audio and frames, .npz"
    ),
}
RECIPES = {
    "l3net": CommandEntry(
        "comodal.recipes.avc_pretraining:recipe", "audio-visual correspondence on clips of video, without labels"
    ),
    "vilbert": CommandEntry(
        "comodal.recipes.vilbert_pretraining:recipe", "masked modeling and alignment on images with captions"
    ),
    "image_classes": CommandEntry(
        "comodal.tasks.image.image_classification:recipe", "image classification, by a fine-tuned L3-Net"
    ),
    "sound_classes": CommandEntry(
        "comodal.tasks.audio.audio_classification:recipe", "sound classification, by a fine-tuned L3-Net"
    ),
    "vqa": CommandEntry(
        "comodal.tasks.vision_language.question_answering.vqa:recipe", "VQA v2: questions about images"
    ),
    "gqa": CommandEntry(
        "comodal.tasks.vision_language.question_answering.gqa:recipe", "GQA: compositional questions about images"
    ),
    "visual_genome": CommandEntry(
        "comodal.tasks.vision_language.question_answering.visual_genome:recipe", "Visual Genome: questions about images"
    ),
    "vcr": CommandEntry("comodal.tasks.vision_language.vcr:recipe", "VCR: which answer, and which rationale"),
    "grounding": CommandEntry(
        "comodal.tasks.vision_language.grounding.refcoco:recipe", "RefCOCO, RefCOCO+, RefCOCOg: referring expressions"
    ),
    "phrases": CommandEntry(
        "comodal.tasks.vision_language.grounding.flickr30k_entities:recipe", "Flickr30k Entities: phrase grounding"
    ),
    "retrieval": CommandEntry("comodal.tasks.retrieval.caption_retrieval:recipe", "caption-based image retrieval"),
    "nlvr2": CommandEntry("comodal.tasks.vision_language.nlvr2:recipe", "NLVR2: is a sentence true of two images"),
    "entailment": CommandEntry(
        "comodal.tasks.vision_language.snli_ve:recipe", "SNLI-VE: does an image entail a sentence"
    ),
}
TRAIN_FUNCTION = "comodal.training.run:train"  # trains every recipe; its parameters are options of `comodal train`
COMMAND_GROUPS = {
    "prepare": "videos, images, features -> training data",
    "evaluate": "scores on labelled data sets",
    "embed": "files -> embeddings",
    "convert": "published weights -> models of comodal",
    "train": "train a recipe: comodal train RECIPE --data DATA --out RUN",
}
