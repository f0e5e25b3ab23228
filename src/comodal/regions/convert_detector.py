"""`comodal convert detector`: converts a detector's published weights to a model folder.

`comodal extract` also reads the published files. A model folder is smaller than most of them, loads faster, and lists
in report.txt what became of every tensor.
"""

from pathlib import Path

from comodal.console import print_line
from comodal.files import write_bytes_atomically
from comodal.models.checkpoint import save_model
from comodal.models.convert.state_dicts import LoadReport
from comodal.regions.detector_files import load_detector

LOAD_REPORT_FILE = "report.txt"


def convert_detector(source: Path, out: Path) -> LoadReport:
    """Writes the weights of a Visual Genome detector, bottom-up attention's or 12-in-1's, as a model folder.

    Args:
        source: Caffe's .caffemodel, Hugging Face's pytorch_model.bin, py-bottom-up-attention's .pkl, MILVLG's .pth,
            the .pth of 12-in-1's and MMF's ResNeXt, or the same as .safetensors.
        out: The folder to write; `comodal extract --detector OUT` reads it.

    Returns:
        The source of each tensor.

    Raises:
        CheckpointError: The file is damaged, holds more than tensors, or is another network; nothing is written.

    Examples:
        comodal convert detector resnet101_faster_rcnn_final.caffemodel vg/
        comodal convert detector detectron_model.pth resnext/
    """
    model, report = load_detector(source)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(out / LOAD_REPORT_FILE, ("\n".join(report.format_lines()) + "\n").encode())
    save_model(model, out, {"recipe": "convert", "source": source.name})
    print_line(f"{out}: {report.format_lines()[0]}; {LOAD_REPORT_FILE} lists them")
    return report
