"""`comodal.load`: loads the pipeline of a model."""

from pathlib import Path

from comodal.hardware import DeviceName, Precision
from comodal.hub_download import resolve_model_path
from comodal.inference.audio_visual import AudioVisualPipeline, load_audio_visual
from comodal.inference.ave_net_pipeline import JointEmbeddingPipeline, load_joint_embedding
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline, load_dual_encoder_pipeline
from comodal.inference.openl3_files import is_openl3_file
from comodal.inference.vision_language import VisionLanguagePipeline, load_vision_language
from comodal.media.user_inputs import to_path
from comodal.models.checkpoint import MODEL_CONFIG_FILE, find_model_folder, read_model_config


def load(
    path: Path | str, device: DeviceName = "auto", precision: Precision = "auto"
) -> AudioVisualPipeline | JointEmbeddingPipeline | VisionLanguagePipeline | DualEncoderPipeline:
    """Loads the pipeline of a model, which takes files, PIL images, arrays and tensors.

    Args:
        path: A run or model folder of an L3-Net, an AVE-Net, a ViLBERT (pretrained or fine-tuned) or a dual encoder, a
            file of OpenL3 weights, or OWNER/NAME on the Hugging Face hub.
        device: auto (CUDA, else MPS, else the CPU), cpu, cuda or mps.
        precision: auto (bf16 where the hardware computes it natively, else fp32), fp32 or bf16.

    Returns:
        An AudioVisualPipeline for an L3-Net or OpenL3 weights, a JointEmbeddingPipeline for an AVE-Net, a
            DualEncoderPipeline for a dual encoder, else a VisionLanguagePipeline.

    Raises:
        CheckpointError: There is no model, it is damaged, or it is of another kind.
        DataError: The vocabulary of the model is missing.
    """
    path = resolve_model_path(to_path(path))
    if is_openl3_file(path):
        return load_audio_visual(path, device, precision)
    folder = find_model_folder(path)
    model_class = read_model_config(folder).get("class") if (folder / MODEL_CONFIG_FILE).is_file() else None
    if model_class == "AVENet":
        return load_joint_embedding(path, device, precision)
    if model_class == "DualEncoder":
        return load_dual_encoder_pipeline(path, device, precision)
    return (load_audio_visual if model_class == "L3Net" else load_vision_language)(path, device, precision)
