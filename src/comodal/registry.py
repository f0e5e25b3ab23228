"""The registries: what can be trained, evaluated and converted, and what extracts regions, by name.

Functions are named as text, `module:function`, so that reading a table imports nothing. Other packages add recipes,
tasks and region extractors through the entry points `comodal.recipes`, `comodal.tasks` and `comodal.region_extractors`
(docs/development/adding_a_task.md, docs/development/adding_an_extractor.md).
"""

from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from comodal.errors import CheckpointError


def import_object(address: str) -> Any:
    """Imports the object of an address, such as comodal.inference.explain:AttentionExplainer."""
    module, name = address.split(":")
    return getattr(import_module(module), name)


class RegistryEntry(NamedTuple):
    """A function, as `module:function`, and its description in one line."""

    target: str
    about: str


class Registry(Mapping[str, RegistryEntry]):
    """A table of names, with the entries that installed packages add to it.

    A name of the table itself is found without reading the metadata of installed packages, which takes 50 ms.

    Args:
        entries: The table.
        group: Entry point group of other packages; empty for a table that cannot be extended.
    """

    def __init__(self, entries: Mapping[str, RegistryEntry], group: str = "") -> None:
        self.entries = dict(entries)
        self.group = group
        self.is_complete = not group

    def load_entry_points(self) -> None:
        """Add the entries of installed packages. The table's own names cannot be replaced."""
        if not self.is_complete:
            self.is_complete = True
            for point in import_module("importlib.metadata").entry_points(group=self.group):
                package = point.dist.name if point.dist else point.module
                self.entries.setdefault(point.name, RegistryEntry(point.value, f"from the package {package}"))

    def __getitem__(self, name: str) -> RegistryEntry:
        if name not in self.entries:
            self.load_entry_points()
        return self.entries[name]

    def __iter__(self) -> Iterator[str]:
        self.load_entry_points()
        return iter(self.entries)

    def __len__(self) -> int:
        self.load_entry_points()
        return len(self.entries)


RECIPES = Registry(
    {
        "l3net": RegistryEntry(
            "comodal.recipes.avc_pretraining:recipe", "audio-visual correspondence on clips of video, without labels"
        ),
        "ave_net": RegistryEntry(
            "comodal.recipes.ave_net_pretraining:recipe",
            "a joint embedding space of images and audio (AVE-Net, AVOL-Net), on clips of video",
        ),
        "clip_classes": RegistryEntry(
            "comodal.recipes.clip_classification:recipe",
            "classification of labeled clips by image and by audio (L3-Net's supervised baselines)",
        ),
        "vilbert": RegistryEntry(
            "comodal.recipes.vilbert_pretraining:recipe", "masked modeling and alignment on images with captions"
        ),
        "dual_encoder": RegistryEntry(
            "comodal.recipes.dual_encoder_training:recipe",
            "one vector for a caption and one for an image, by contrastive learning",
        ),
        "joint": RegistryEntry(
            "comodal.recipes.joint_training:recipe", "12-in-1: one ViLBERT on several tasks, with task tokens"
        ),
        "image_classes": RegistryEntry(
            "comodal.tasks.image.image_classification:recipe", "image classification, by a fine-tuned L3-Net"
        ),
        "sound_classes": RegistryEntry(
            "comodal.tasks.audio.audio_classification:recipe", "audio classification, by a fine-tuned L3-Net"
        ),
        "vqa": RegistryEntry(
            "comodal.tasks.vision_language.question_answering.vqa:recipe", "VQA v2: questions about images"
        ),
        "gqa": RegistryEntry(
            "comodal.tasks.vision_language.question_answering.gqa:recipe", "GQA: compositional questions about images"
        ),
        "visual_genome": RegistryEntry(
            "comodal.tasks.vision_language.question_answering.visual_genome:recipe",
            "Visual Genome: questions about images",
        ),
        "vcr": RegistryEntry("comodal.tasks.vision_language.vcr:recipe", "VCR: answers and rationales"),
        "grounding": RegistryEntry(
            "comodal.tasks.vision_language.grounding.refcoco:recipe",
            "RefCOCO, RefCOCO+, RefCOCOg: referring expressions",
        ),
        "phrases": RegistryEntry(
            "comodal.tasks.vision_language.grounding.flickr30k_entities:recipe", "Flickr30k Entities: phrase grounding"
        ),
        "visual7w": RegistryEntry(
            "comodal.tasks.vision_language.grounding.visual7w:recipe",
            "Visual7W: which of four boxes answers a question",
        ),
        "guesswhat": RegistryEntry(
            "comodal.tasks.vision_language.grounding.guesswhat:recipe",
            "GuessWhat?!: which object a dialog is about (guesser)",
        ),
        "retrieval": RegistryEntry("comodal.tasks.retrieval.caption_retrieval:recipe", "caption-based image retrieval"),
        "nlvr2": RegistryEntry(
            "comodal.tasks.vision_language.nlvr2:recipe", "NLVR2: whether a sentence is true of two images"
        ),
        "entailment": RegistryEntry(
            "comodal.tasks.vision_language.snli_ve:recipe", "SNLI-VE: whether an image entails a sentence"
        ),
    },
    "comodal.recipes",
)
TASKS = Registry(
    {
        "avc": RegistryEntry(
            "comodal.tasks.correspondence.avc_evaluation:evaluate_avc",
            "audio-visual correspondence of clips: accuracy, by class, cross-modal ranking",
        ),
        "localization": RegistryEntry(
            "comodal.tasks.localization.source_localization:evaluate_localization",
            "Flickr-SoundNet or VGG-SS: where in an image a sound comes from, also with negative audio",
        ),
        "ave": RegistryEntry(
            "comodal.tasks.clip_events.ave:evaluate_ave", "AVE: the event of each second of a video, by a linear probe"
        ),
        "vggsounder": RegistryEntry(
            "comodal.tasks.clip_events.vggsounder:evaluate_vggsounder",
            "VGGSounder: several labels of each video, audible or visible, by linear probes",
        ),
        "esc50": RegistryEntry(
            "comodal.tasks.audio.esc50:evaluate_esc50", "ESC-50 or ESC-10, compared with three baselines"
        ),
        "dcase": RegistryEntry(
            "comodal.tasks.audio.dcase:evaluate_dcase", "acoustic scenes of DCASE 2013 or TAU; writes a submission"
        ),
        "us8k": RegistryEntry("comodal.tasks.audio.urbansound8k:evaluate_us8k", "UrbanSound8K, ten folds"),
        "audio": RegistryEntry("comodal.tasks.audio.audio_folders:evaluate_audio", "any class folders of audio files"),
        "retrieval": RegistryEntry(
            "comodal.tasks.cross_modal_retrieval:evaluate_cross_modal_retrieval",
            "retrieval of images by captions or audio, and the other way round",
        ),
        "foils": RegistryEntry(
            "comodal.tasks.foils.foils:evaluate_foils",
            "captions against foils: VALSE, SugarCrepe, ARO, Winoground",
        ),
        "vqa": RegistryEntry(
            "comodal.tasks.vision_language.question_answering.vqa:evaluate_vqa",
            "VQA v2: official accuracy; writes a submission",
        ),
        "gqa": RegistryEntry(
            "comodal.tasks.vision_language.question_answering.gqa:evaluate_gqa",
            "GQA: accuracy by question type; writes a submission",
        ),
        "visual_genome": RegistryEntry(
            "comodal.tasks.vision_language.question_answering.visual_genome:evaluate_visual_genome",
            "Visual Genome's questions, scored as VQA",
        ),
        "vcr": RegistryEntry(
            "comodal.tasks.vision_language.vcr:evaluate_vcr", "VCR: answers, rationales, both; writes a submission"
        ),
        "grounding": RegistryEntry(
            "comodal.tasks.vision_language.grounding.refcoco:evaluate_grounding",
            "RefCOCO, RefCOCO+, RefCOCOg: referring expressions",
        ),
        "phrases": RegistryEntry(
            "comodal.tasks.vision_language.grounding.flickr30k_entities:evaluate_phrases",
            "Flickr30k Entities: phrase grounding",
        ),
        "visual7w": RegistryEntry(
            "comodal.tasks.vision_language.grounding.visual7w:evaluate_visual7w",
            "Visual7W: which of four boxes answers a question",
        ),
        "guesswhat": RegistryEntry(
            "comodal.tasks.vision_language.grounding.guesswhat:evaluate_guesswhat",
            "GuessWhat?!: which object a dialog is about (guesser)",
        ),
        "nlvr2": RegistryEntry(
            "comodal.tasks.vision_language.nlvr2:evaluate_nlvr2", "NLVR2: whether a sentence is true of two images"
        ),
        "entailment": RegistryEntry(
            "comodal.tasks.vision_language.snli_ve:evaluate_entailment", "SNLI-VE: visual entailment"
        ),
        "images": RegistryEntry(
            "comodal.tasks.image.linear_classification:evaluate_images", "ImageNet or an ImageFolder, by a linear probe"
        ),
        "image_classes": RegistryEntry(
            "comodal.tasks.image.image_classification:evaluate_image_classes",
            "images, by a network fine-tuned for their classes",
        ),
        "sound_classes": RegistryEntry(
            "comodal.tasks.audio.audio_classification:evaluate_sound_classes",
            "audio, by a network fine-tuned for its classes",
        ),
    },
    "comodal.tasks",
)
CHECKPOINT_READERS = Registry(
    {
        "vilbert": RegistryEntry(
            "comodal.tasks.convert_vilbert_files:convert", "ViLBERT's published weights to a model, and back"
        ),
        "openl3": RegistryEntry(
            "comodal.inference.openl3_files:convert_openl3", "OpenL3's published weights to a model"
        ),
        "detector": RegistryEntry(
            "comodal.regions.convert_detector:convert_detector", "a Visual Genome detector's weights to a model"
        ),
    }
)
REGION_EXTRACTORS = Registry(
    {
        "efficientnet_lite0": RegistryEntry(
            "comodal.regions.backbones:load_lite0_extractor",
            "EfficientNet-Lite0 (ImageNet; extra `lite`), by this name",
        ),
        "l3net_tower": RegistryEntry(
            "comodal.regions.backbones:load_l3net_extractor",
            "the image tower of an L3-Net, from its run or model folder",
        ),
        "huggingface_detr": RegistryEntry(
            "comodal.regions.extractors_detr:load_detr_extractor", "Hugging Face's DETR family, from a model folder"
        ),
        "bottom_up_attention": RegistryEntry(
            "comodal.regions.extractors_c4:load_c4_extractor", "bottom-up attention's Visual Genome detector"
        ),
        "resnext_fpn": RegistryEntry(
            "comodal.regions.extractors_fpn:load_fpn_extractor", "the Visual Genome detector of 12-in-1 and MMF"
        ),
        "torchvision_faster_rcnn": RegistryEntry(
            "comodal.regions.extractors_torchvision:load_torchvision_extractor", "torchvision's Faster R-CNN"
        ),
    },
    "comodal.region_extractors",
)


def check_region_extractor(detector: str) -> None:
    """Check that a region extractor is in the registry, or that its files exist.

    Raises:
        CheckpointError: It is not, and they do not.
    """
    if detector not in REGION_EXTRACTORS and not Path(detector).exists():
        raise CheckpointError(
            f"{detector}: no such file or folder; `comodal list extractors` lists the supported networks"
        )
