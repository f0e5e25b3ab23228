"""The single-stream baseline: outputs as the original's basebert.py, and all that a ViLBERT does."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from comodal.analysis.co_attention import check_co_attention
from comodal.data.regions.region_store import RegionStore
from comodal.errors import CheckpointError, DataError
from comodal.hardware import Compute
from comodal.models.checkpoint import load_model, save_model
from comodal.models.convert.convert_bert import load_bert_weights
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.single_stream import SingleStream, SingleStreamConfig
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.recipes.vilbert_pretraining import recipe
from comodal.tasks.convert_vilbert_files import convert
from comodal.tasks.vision_language.text_image_examples import FixedExamples, TaskExample, tokenize_text
from comodal.tasks.vision_language.vilbert_fine_tuning import (
    ViLBERTFineTuneConfig,
    build_vilbert_run,
    compute_class_loss,
    load_fine_tuned_model,
    load_fine_tuning_data,
    score_examples,
)
from comodal.training.run import train
from tests.support.paths import FIXTURES
from tests.support.small_captions import write_captions
from tests.support.small_tasks import COLOURS, QUESTION, colour_of, write_colours, write_pretrained

FOLDER = FIXTURES / "vilbert" / "single_stream"
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("converted") / "model"
    conversion = convert(FOLDER / "state.safetensors", out, FOLDER / "bert_baseline.json")
    assert (conversion.new, conversion.unused, conversion.difference) == (0, 0, 0)
    return out


def test_all_outputs_are_those_of_the_original(converted: Path):
    model = load_model(converted)
    assert isinstance(model, TaskModel) and isinstance(model.vilbert, SingleStream)
    given, expected = load_file(FOLDER / "inputs.safetensors"), load_file(FOLDER / "outputs.safetensors")
    text = given["input_ids"], given["token_type_ids"], given["attention_mask"]
    vision = given["image_feat"], given["image_loc"], given["image_attention_mask"]
    with torch.inference_mode():
        output = model.vilbert(*text, *vision)
        ours = {
            "sequence": torch.cat([output.token_states, output.region_states], 1),
            "pooled": output.pooled_text,
            "seq_relationship_score": model.vilbert.alignment_head(output.pooled_text, output.pooled_vision),
            "prediction_scores_t": model.vilbert.compute_token_logits(output.token_states.flatten(0, 1)).view(3, 6, -1),
            "prediction_scores_v": model.vilbert.region_head(output.region_states.flatten(0, 1)).view(3, 4, -1),
        }
        heads = {"vil_prediction": "vqa", "vil_logit": "score", "vision_logit": "regions", "linguisic_logit": "tokens"}
        for theirs, head in heads.items():
            scores = model(head, *text, *vision, torch.arange(3))
            ours[theirs] = scores.unsqueeze(2) if head in ("regions", "tokens") else scores
    assert ours.keys() == expected.keys()
    assert_close(ours, expected, **TOLERANCE)
    assert expected["vil_prediction"].std() > 0.1  # so that the tolerance tells weights apart


def test_caches_and_unpadded_sequences_change_nothing(converted: Path):
    model = load_model(converted).vilbert
    given = load_file(FOLDER / "inputs.safetensors")
    text = model.encode_text(given["input_ids"], given["token_type_ids"], given["attention_mask"])
    vision = model.encode_image(given["image_feat"], given["image_loc"], given["image_attention_mask"])
    with torch.inference_mode():
        assert_close(model.fuse_pooled(text, vision), tuple(model.fuse(text, vision)[2:]), **TOLERANCE)
    with pytest.raises(ValueError, match="no task tokens"):
        model.encode_text(given["input_ids"], given["token_type_ids"], None, torch.zeros(3, dtype=torch.int64))


def test_it_goes_back_to_the_originals_files(converted: Path, tmp_path: Path):
    convert(converted, tmp_path / "original")
    assert json.loads((tmp_path / "original" / "config.json").read_text()) == json.loads(
        (FOLDER / "bert_baseline.json").read_text()
    )
    back, state = (
        load_file(tmp_path / "original" / "pytorch_model.safetensors"),
        load_file(FOLDER / "state.safetensors"),
    )
    types, bias = "bert.image_embeddings.token_type_embeddings.weight", "bert.image_embeddings.image_embeddings.bias"
    assert back[types].shape == state[types].shape and not back[types].any()
    assert_close(back[bias], state[bias].float() + state[types][1].float(), rtol=0, atol=0)
    same = [name for name in state if name not in (types, bias) and not name.startswith("vil_prediction")]
    assert all(torch.equal(back[name], state[name].float()) for name in same)


def test_what_the_original_cannot_hold_is_told(converted: Path, tmp_path: Path):
    config = replace(load_model(converted).vilbert.config, num_visual_tokens=5)
    save_model(SingleStream(config), tmp_path / "tokens", {})
    with pytest.raises(CheckpointError, match="visual tokens"):
        convert(tmp_path / "tokens", tmp_path / "out")
    values = json.loads((FOLDER / "bert_baseline.json").read_text())
    del values["vocab_size"]
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"config.json: .*vocab_size"):
        convert(FOLDER / "state.safetensors", tmp_path / "out", tmp_path / "config.json")
    state = load_file(FOLDER / "state.safetensors")
    bert = {name: tensor for name, tensor in state.items() if "image_embeddings" not in name}
    save_file(bert, tmp_path / "bert.safetensors")
    with pytest.raises(CheckpointError, match=r"bert.safetensors: bert.image_embeddings.image_embeddings.weight"):
        convert(tmp_path / "bert.safetensors", tmp_path / "out", FOLDER / "bert_baseline.json")


def test_a_bert_fills_the_pooler_and_the_alignment_of_a_single_stream_only(converted: Path, tmp_path: Path):
    """As the original's from_pretrained does, which matches by name."""
    state = load_file(FOLDER / "state.safetensors")
    bert = {k: v for k, v in state.items() if k.startswith(("bert.e", "bert.p", "cls.p", "cls.s"))}
    save_file(bert, tmp_path / "model.safetensors")
    model = SingleStream(load_model(converted).vilbert.config)
    report = load_bert_weights(model, tmp_path)
    assert torch.equal(model.pooler[0].weight, state["bert.pooler.dense.weight"].float())
    assert torch.equal(model.alignment_head.classifier.weight, state["cls.seq_relationship.weight"].float())
    assert all(name.startswith(("region_embeddings.", "region_head.")) for name in report.new)
    assert not any(name.startswith(("region_embeddings.", "region_head.")) for name in report.filled)


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A BERT in the layout of Hugging Face: the weights of the fixture without its regions."""
    folder, state = tmp_path / "bert", load_file(FOLDER / "state.safetensors")
    folder.mkdir()
    weights = {k: v for k, v in state.items() if k.startswith(("bert.em", "bert.en", "bert.p", "cls.p", "cls.s"))}
    save_file(weights, folder / "model.safetensors")
    values = json.loads((FOLDER / "bert_baseline.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "bert"}))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *QUESTION.split(), *(f"w{i}" for i in range(31))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.mark.parametrize("variant", ["small", "small_single_stream"])
def test_without_pretraining_on_captions_only_the_text_comes_from_the_bert(tmp_path: Path, bert: Path, variant: str):
    """The daggers of table 1; the learning rates are those of vilbert_beta's --vision_scratch."""
    write_colours(tmp_path / "regions")
    fine_tune = ViLBERTFineTuneConfig(from_bert=variant, batch_size=8, learning_rate=2e-5, workers=0)
    parts = load_fine_tuning_data(bert, tmp_path / "regions", fine_tune)
    again = load_fine_tuning_data(bert, tmp_path / "regions", fine_tune)
    other = load_fine_tuning_data(bert, tmp_path / "regions", replace(fine_tune, seed=1))
    state = load_file(FOLDER / "state.safetensors")
    weights = {name: part.model.state_dict() for name, part in (("0", parts), ("0 again", again), ("1", other))}
    query = "text_layers.1.attention.query.weight"
    assert torch.equal(weights["0"][query], state["bert.encoder.layer.1.attention.self.query.weight"].float())
    assert torch.equal(weights["0"][query], weights["1"][query])
    regions = "region_embeddings.features.weight"
    assert torch.equal(weights["0"][regions], weights["0 again"][regions])
    assert not torch.equal(weights["0"][regions], weights["1"][regions])
    examples = FixedExamples([TaskExample("0", (tokenize_text(parts.tokenizer, QUESTION, 36),), (0,), 1)])
    run = build_vilbert_run(parts, fine_tune, HEAD, compute_class_loss, examples, None, "", {})
    rates = {p: group["lr_scale"] * 1e-4 for group in run.optimizer.param_groups for p in group["params"]}
    rate_of = {name: rates[p] for name, p in run.objective.model.vilbert.named_parameters() if p in rates}
    assert rate_of[query] == pytest.approx(2e-5)
    assert rate_of[regions] == pytest.approx(1e-4)
    assert ("pooler.0.weight" in rate_of) == (variant == "small_single_stream")
    if variant == "small_single_stream":
        assert rate_of["pooler.0.weight"] == pytest.approx(2e-5)  # BERT has a pooler
    scratch = load_fine_tuning_data(bert, tmp_path / "regions", replace(fine_tune, start_from="scratch"))
    assert scratch.pretrained == () and not torch.equal(scratch.model.state_dict()[query], weights["0"][query])


def test_a_pretrained_model_is_not_a_bert(tmp_path: Path):
    write_colours(tmp_path / "regions")
    pretrained = write_pretrained(tmp_path / "run", [QUESTION])
    with pytest.raises(CheckpointError, match="run"):
        load_fine_tuning_data(pretrained, tmp_path / "regions", ViLBERTFineTuneConfig(from_bert="small"))


HEAD = Head("colour", "answers", len(COLOURS), 16)


@pytest.mark.parametrize("start", ["pretrained", "scratch"])
def test_it_is_fine_tuned_and_evaluated_as_a_vilbert_is(tmp_path: Path, start: str):
    """Four colors of 40 images; it learns them, since text and region meet in every layer."""
    store = write_colours(tmp_path / "regions")
    pretrained = write_pretrained(tmp_path / "run", [QUESTION])
    two = load_model(pretrained)
    assert isinstance(two, ViLBERT)
    torch.manual_seed(3)
    config = SingleStreamConfig(two.config.vocabulary, 40, 0, 2, two.config.text, store.dim, 3, 0, 0.1)
    save_model(SingleStream(config), pretrained / "model", {"recipe": "by hand"})
    fine_tune = ViLBERTFineTuneConfig(start, 15.0, 8, 2e-3, 0, max_regions=5)
    parts = load_fine_tuning_data(pretrained, tmp_path / "regions", fine_tune)
    examples = FixedExamples([
        TaskExample(str(image), (tokenize_text(parts.tokenizer, QUESTION, 36),), (image,), colour_of(image))
        for image in range(40)
    ])  # fmt: skip

    def make_run():
        return build_vilbert_run(parts, fine_tune, HEAD, compute_class_loss, examples, None, "", {})

    assert train(make_run, {}, tmp_path / "out", device="cpu", precision="fp32", log_every=100) == 0
    loaded = load_fine_tuned_model(
        tmp_path / "out", tmp_path / "regions", "none", 5, Compute(torch.device("cpu")), HEAD.name
    )
    assert isinstance(loaded.model.vilbert, SingleStream)
    scored = list(score_examples(loaded, HEAD.name, examples.examples))
    assert sum(row.scores.argmax() == row.example.target for row in scored) > 30


def test_it_is_pretrained_on_features_and_has_no_co_attention_to_draw(tmp_path: Path):
    regions, captions = write_captions(tmp_path)
    values = {"data": regions, "captions": captions, "variant": "small_single_stream", "batch_size": 8, "steps": 3}
    train(recipe, values | {"workers": 0, "validation_pairs": 16}, tmp_path / "run", device="cpu", precision="fp32")
    model = load_model(tmp_path / "run")
    assert isinstance(model, SingleStream)
    assert (model.config.region_feature_dim, model.config.num_visual_tokens) == (RegionStore(regions).dim, 0)
    with pytest.raises(DataError, match="no co-attention"):
        check_co_attention(model, tmp_path / "run")


def test_a_saved_task_model_keeps_its_backbone(tmp_path: Path, converted: Path):
    model = TaskModel(TaskModelConfig(load_model(converted).vilbert.config, (HEAD,)))
    save_model(model, tmp_path / "model", {})
    assert load_model(tmp_path / "model").config == model.config
    described = json.loads((tmp_path / "model" / "config.json").read_text())
    del described["config"]["vilbert"]["num_visual_tokens"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(described))
    with pytest.raises(CheckpointError, match=r"config.json: config.vilbert: missing"):
        load_model(tmp_path / "model")
