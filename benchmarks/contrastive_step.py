"""A training step of AVE-Net by the contrastive loss against the step by correspondence, at the same batch size.

Both embed as many images and seconds of audio. The contrastive step also scores all images with all audio. The steps
are taken in turn, in the precision and layout of training.

    python benchmarks/contrastive_step.py [--variant small] [--batch 256] [--repeats 5] [--threads 2] [--out FILE]
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from comodal.data.batch import AudioVisualBatch
from comodal.hardware import MEMORY_FORMATS, choose_training_layout, resolve_compute
from comodal.models.ave_net.ave_net import AVENet
from comodal.objectives.avc import AudioVisualCorrespondence
from comodal.objectives.joint_embedding import ContrastiveEmbedding
from comodal.recipes.ave_net_pretraining import AVE_VARIANTS
from comodal.training.optimization import make_adam
from machine import describe_machine, print_ratio, save, seconds_in_turn, synchronize

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 2e-5
TARGET = 1.0
OBJECTIVES: dict[str, Callable[[AVENet], nn.Module]] = {
    "correspondence": AudioVisualCorrespondence,
    "contrastive": ContrastiveEmbedding,
}


def make_step(name: str, options: argparse.Namespace) -> Callable[[], None]:
    """A step on random pairs: half of them matched for correspondence, all of them for the contrastive loss."""
    torch.manual_seed(0)
    compute = resolve_compute(options.device, options.precision)
    config = AVE_VARIANTS[options.variant]
    config = replace(config, width=options.width or config.width, image_size=options.image_size or config.image_size)
    objective = OBJECTIVES[name](AVENet(config)).to(compute.device)
    objective = objective.to(memory_format=MEMORY_FORMATS[choose_training_layout(compute, objective)]).train()
    optimizer = make_adam(objective, LEARNING_RATE, WEIGHT_DECAY)
    rows, samples = torch.arange(options.batch), round(config.audio_seconds * config.sample_rate)
    batch = AudioVisualBatch(
        image=torch.randint(0, 256, (options.batch, 3, config.image_size, config.image_size), dtype=torch.uint8),
        audio=0.1 * torch.randn(options.batch, samples),
        is_match=torch.ones(options.batch, dtype=torch.bool) if name == "contrastive" else rows % 2 == 0,
        source_ids=rows,
        keys=tuple(map(str, rows.tolist())),
    ).to(compute.device)

    def step() -> None:
        with compute.autocast():
            loss = objective(batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        synchronize(compute.device)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--variant", choices=tuple(AVE_VARIANTS), default="small")
    parser.add_argument("--width", type=int, help="filters of the first block; by default those of the variant")
    parser.add_argument("--image-size", type=int, help="by default that of the variant")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine()
    seconds = seconds_in_turn({name: make_step(name, options) for name in OBJECTIVES}, options.repeats)
    numbers: dict[str, float] = {}
    for name, values in seconds.items():
        rates = [options.batch / value for value in values]
        numbers[f"{name}.samples_per_second"] = statistics.median(rates)
        print(f"{name}: {statistics.median(rates):,.1f} samples/s ({min(rates):,.1f}-{max(rates):,.1f})")
    pairs = zip(seconds["correspondence"], seconds["contrastive"], strict=True)
    numbers["contrastive.ratio"] = statistics.median(one / other for one, other in pairs)
    work = f"AVE-Net training step, {options.variant}, batch {options.batch}, contrastive and correspondence"
    print_ratio(work, numbers["contrastive.ratio"], TARGET, machine)
    save(numbers | machine, options.out)


if __name__ == "__main__":
    main()
