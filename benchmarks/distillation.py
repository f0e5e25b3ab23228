"""A ViLBERT on few captions: the loss of its alignment head, aligned region features, and a dual encoder as teacher.

Tux Paint's stamps as in benchmarks/captions.py: 673 captions for training, 112 images held out. The ViLBERT has one
co-attention layer before the last layer of the BERT, whose other layers are frozen. It is trained by

- alignment: pairs, half of them mismatched, as in the paper;
- softmax: all pairs of a batch, contrastive over the log odds of the alignment head;
- distillation: half of softmax's loss, half the divergence from the dual encoder's similarities.

With --features aligned its regions are the dual encoder's projections of them. With --hard-negatives a batch holds the
images that the dual encoder ranks next to the first caption's. Shown are R@1, R@5 and R@10 of the ViLBERT, of its mean
with the dual encoder (log probabilities), and of the dual encoder re-ranked by the ViLBERT (first 10).

    python benchmarks/distillation.py --stamps tux_stamps/ --bert minilm/ --out distillation/ --loss distillation
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from captions import GRID, split_captions
from comodal.data.captions.caption_dataset import prepend_full_image
from comodal.data.captions.caption_files import read_captions
from comodal.data.captions.caption_matching import match_captions, split_matched_captions
from comodal.data.regions.region_store import RegionStore
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.convert.backbone_variants import RegionSizes, build_backbone_config
from comodal.models.convert.convert_bert import load_bert_weights
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.vilbert.streams import UnimodalEncoding
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.models.vilbert.vilbert_config import ViLBERTConfig
from comodal.recipes.dual_encoder_training import recipe
from comodal.recipes.recipe_configs import read_recipe_config
from comodal.regions.backbones import LITE0
from comodal.regions.extract import extract_regions
from comodal.training.run import train

BLOCK, MAX_REGIONS, RERANKED, NEIGHBORS = 64, 36, 10, 40
ALIGNED_SCALE = 16.0  # the length of aligned features: components of about 1


class Pairs(NamedTuple):
    """Captions and images of a split; row i of both is a pair. `teacher` has the dual encoder's scaled cosines."""

    tokens: UnimodalEncoding
    regions: Tensor
    spatials: Tensor
    teacher: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="folder of images with captions.json")
    parser.add_argument("--bert", type=Path, required=True, help="folder of a Hugging Face BERT")
    parser.add_argument("--out", type=Path, required=True, help="where everything goes; run again to go on")
    parser.add_argument("--detector", default=LITE0, help="of `comodal extract`: a vision network")
    parser.add_argument("--loss", choices=("alignment", "softmax", "distillation"), default="distillation")
    parser.add_argument("--features", choices=("stored", "aligned"), default="aligned")
    parser.add_argument("--hard-negatives", action="store_true")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="captions of a batch, all of whose pairs are scored")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    captions, regions, run = options.out / "captions.json", options.out / "regions", options.out / "dual"
    split_captions(options.stamps / "captions.json", captions)
    extract_regions(options.stamps, regions, options.detector, grid=GRID)
    values = read_recipe_config(Path("dual_encoder_small_data")).options | {"data": regions, "captions": captions}
    values |= {"bert": options.bert, "seed": options.seed, "workers": 0, "steps": min(options.steps, 200)}
    train(recipe, values, run, resume=True, threads=torch.get_num_threads())
    torch.manual_seed(options.seed)
    model = build_vilbert(options.bert, RegionStore(regions), DualEncoder.from_pretrained(run), options.features)
    splits = load_splits(model, options.bert, regions, captions, run, options.features)
    fit(model, splits["train"], options)
    numbers = evaluate(model, splits["test"])
    print(numbers)
    (options.out / "results.json").write_text(json.dumps(numbers, indent=2) + "\n")


def build_vilbert(bert: Path, store: RegionStore, dual: DualEncoder, features: str) -> ViLBERT:
    """A small ViLBERT over a BERT, with one layer of vision and one co-attention layer."""
    dim = dual.config.embedding_dim if features == "aligned" else store.dim
    config = build_backbone_config("small", bert, WordPieceTokenizer.read(bert).size, RegionSizes(dim, 1, 0))
    assert isinstance(config, ViLBERTConfig)
    layers = ((0, config.text.layers - 1),)
    model = ViLBERT(replace(config, co_attention_layers=layers, vision=replace(config.vision, layers=1)))
    load_bert_weights(model, bert)
    frozen = [model.text_embeddings, *model.text_layers[:-1], model.token_head, model.region_head]
    for module in frozen:
        module.requires_grad_(False)
    return model


@torch.no_grad()
def load_splits(
    model: ViLBERT, bert: Path, regions: Path, captions: Path, run: Path, features: str
) -> dict[str, Pairs]:
    """The pairs of both splits, with the unimodal encodings of the frozen BERT."""
    store, tokenizer, dual = RegionStore(regions), WordPieceTokenizer.read(bert), DualEncoder.from_pretrained(run)
    parts = split_matched_captions(match_captions(read_captions(captions), store.ids).pairs, store.ids, 0.0, 0.0)
    splits = {}
    for split in ("train", "test"):
        images = [prepend_full_image(store.read_regions(row), MAX_REGIONS) for _, row in parts[split]]
        image_features, spatials = (torch.from_numpy(np.stack(arrays)) for arrays in zip(*images, strict=True))
        texts = [tokenizer.encode(caption.caption) for caption, _ in parts[split]]
        mask = torch.arange(max(map(len, texts))) < torch.tensor([[len(text)] for text in texts])
        token_ids = torch.zeros(mask.shape, dtype=torch.int64)
        token_ids[mask] = torch.tensor([token for text in texts for token in text])
        blocks = list(zip(token_ids.split(BLOCK), mask.split(BLOCK), strict=True))
        text_embeddings = dual.embed_text_features(torch.cat([dual.compute_text_features(*block) for block in blocks]))
        teacher = text_embeddings @ dual.embed_image(image_features, None).T / dual.temperature().exp()
        if features == "aligned":
            projected = dual.image_head.linear(dual.image_head.norm(image_features))
            image_features = ALIGNED_SCALE * F.normalize(projected, dim=-1)
        model.eval()
        states = [model.encode_text(ids, torch.zeros_like(ids), keep).hidden_states for ids, keep in blocks]
        splits[split] = Pairs(UnimodalEncoding(torch.cat(states), mask), image_features, spatials, teacher)
    return splits


def compute_log_odds(model: ViLBERT, pairs: Pairs, texts: Tensor, images: Tensor, encoded: Tensor) -> Tensor:
    """The log odds of a match of some texts, by index, with images, by index among the encoded ones."""
    tokens = pairs.tokens.select_rows(texts)
    assert tokens.mask is not None
    length = int(tokens.mask.sum(1).max())
    tokens = UnimodalEncoding(tokens.hidden_states[:, :length], tokens.mask[:, :length])
    logits = model.alignment_head(*model.fuse_pooled(tokens, UnimodalEncoding(encoded[images], None)))
    return logits[:, 0] - logits[:, 1]


def fit(model: ViLBERT, pairs: Pairs, options: argparse.Namespace, learning_rate: float = 1e-3) -> None:
    """Trains the ViLBERT; its BERT layer at a tenth of the learning rate."""
    rng, count = np.random.default_rng(options.seed), len(pairs.regions)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    scales = {0.1: [p for name, p in trained.items() if name.startswith("text_layers")]}
    scales[1.0] = [p for name, p in trained.items() if not name.startswith("text_layers")]
    groups = [{"params": parameters, "scale": scale} for scale, parameters in scales.items()]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=0.05)
    neighbors = pairs.teacher.topk(min(count, NEIGHBORS), 1).indices
    model.train()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            warmup = min(1.0, (step + 1) / (0.1 * options.steps))
            group["lr"] = learning_rate * group["scale"] * warmup * (1 - step / options.steps)
        if options.loss == "alignment":
            loss = compute_alignment_loss(model, pairs, rng, options.batch**2)
        else:
            rows = draw_rows(neighbors, rng, options)
            encoded = model.encode_image(pairs.regions[rows], pairs.spatials[rows], None).hidden_states
            size = len(rows)
            sides = rows.repeat_interleave(size), torch.arange(size).repeat(size)
            scores = compute_log_odds(model, pairs, *sides, encoded).view(size, size)
            loss = sum(F.cross_entropy(side, torch.arange(size)) for side in (scores, scores.T)) / 2
            if options.loss == "distillation":
                target = pairs.teacher[rows][:, rows]
                loss = 0.5 * loss + 0.5 * sum(
                    F.kl_div(ours.log_softmax(1), theirs.softmax(1), reduction="batchmean")
                    for ours, theirs in ((scores, target), (scores.T, target.T))
                )
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(list(trained.values()), 1.0)
        optimizer.step()


def draw_rows(neighbors: Tensor, rng: np.random.Generator, options: argparse.Namespace) -> Tensor:
    """The pairs of a batch: any, or neighbors of one of them in the dual encoder's ranking."""
    if not options.hard_negatives:
        return torch.from_numpy(rng.permutation(len(neighbors))[: options.batch])
    first = int(rng.integers(len(neighbors)))
    others = neighbors[first][torch.from_numpy(rng.permutation(neighbors.shape[1])[: options.batch - 1])]
    return torch.cat([torch.tensor([first]), others]).unique()


def compute_alignment_loss(model: ViLBERT, pairs: Pairs, rng: np.random.Generator, batch: int) -> Tensor:
    """The paper's loss of pairs, half of which have another image."""
    texts = torch.from_numpy(rng.integers(len(pairs.regions), size=batch))
    images = torch.where(torch.rand(batch) < 0.5, texts, torch.from_numpy(rng.integers(len(pairs.regions), size=batch)))
    rows, inverse = images.unique(return_inverse=True)
    encoded = model.encode_image(pairs.regions[rows], pairs.spatials[rows], None).hidden_states
    log_odds = compute_log_odds(model, pairs, texts, inverse, encoded)
    return F.binary_cross_entropy_with_logits(log_odds, (texts == images).float())


@torch.inference_mode()
def evaluate(model: ViLBERT, pairs: Pairs) -> dict[str, float]:
    """Recall of the images of captions: the ViLBERT, both models, the dual encoder re-ranked, the dual encoder."""
    model.eval()
    count, teacher = len(pairs.regions), pairs.teacher
    encoded = model.encode_image(pairs.regions, pairs.spatials, None).hidden_states
    every = torch.arange(count)
    scores = torch.stack(
        [compute_log_odds(model, pairs, torch.full((count,), text), every, encoded) for text in range(count)]
    )
    best = teacher.topk(min(RERANKED, count), 1).indices
    reranked = (teacher - 1e4).scatter(1, best, scores.gather(1, best))
    systems = {"vilbert": scores, "mean": scores.log_softmax(1) + teacher.log_softmax(1)}
    systems |= {"reranked": reranked, "dual_encoder": teacher}
    numbers = {}
    for name, matrix in systems.items():
        ranks = (matrix >= matrix.diagonal()[:, None]).sum(1) - 1  # ties count as ahead
        numbers |= {f"{name}.r{cut}": round((ranks < cut).float().mean().item(), 4) for cut in (1, 5, 10)}
    return numbers


if __name__ == "__main__":
    main()
