"""Embedders, detectors, searches and tasks on a fake GPU: nothing stays on the CPU, and only what must waits for it."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn

from comodal.inference.audio_visual import AudioVisualPipeline
from comodal.inference.ave_net_pipeline import JointEmbeddingPipeline
from comodal.inference.embedder import Embedder, EmbedderOptions
from comodal.inference.embedding_search.embedding_spaces import make_embedding_space
from comodal.inference.image_search.search import Searcher
from comodal.inference.image_search.search_first_stage import FirstStage, FirstStageTraining
from comodal.inference.image_search.search_index import IndexedImages
from comodal.inference.joint_space.dual_encoder_pipeline import DualEncoderPipeline
from comodal.inference.vision_language import VisionLanguagePipeline
from comodal.media.tokenizer import WordPieceTokenizer
from comodal.models.ave_net.ave_net import SMALL_AVE_NET_CONFIG, AVENet
from comodal.models.dual_encoder.dual_encoder import DualEncoder
from comodal.models.l3net.fused_vgg import make_fast_l3net
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.task_model import TaskModel
from comodal.models.vilbert.task_model import TaskModelConfig as TaskConfig
from comodal.models.vilbert.vilbert import ViLBERT
from comodal.regions.backbones import Backbone, PooledRegions, compute_l3net_maps
from comodal.regions.extractors_c4 import C4Extractor
from comodal.regions.extractors_detr import DetrExtractor
from comodal.regions.extractors_fpn import FPNExtractor
from comodal.regions.extractors_torchvision import FasterRCNNExtractor
from comodal.tasks.retrieval.dual_encoder_embeddings import embed_gallery
from comodal.tasks.retrieval.first_stage import TwoStageSearch, fit_projections
from comodal.tasks.retrieval.gallery import Gallery
from comodal.tasks.retrieval.gallery_ranking import RETRIEVAL_HEAD, select_scoring_head
from comodal.tasks.retrieval.pair_scores import PairScorer
from comodal.tasks.retrieval.retrieval_ranks import list_text_answers
from comodal.tasks.vision_language.vilbert_fine_tuning import score_batch
from tests.objectives.test_pretraining import CONFIG
from tests.support.detector_fixtures import CAFFE, LXMERT, PYRAMID, c4_of, caffe_rules, fpn_of, fpn_rules, lxmert_rules
from tests.support.fake_gpu import GPU, FakeCompute, fake_gpu
from tests.support.small_detectors import tiny_backbone
from tests.support.small_regions import DIM, some_images, write_store
from tests.support.small_systems import AVE_NETS, DUAL, TASKS
from tests.tasks.retrieval.test_retrieval import CONFIG as RETRIEVAL
from tests.tasks.retrieval.test_retrieval import IMAGES, SENTENCES, captions_of

DUAL_OF_GALLERY = replace(DUAL, vocabulary=RETRIEVAL.vocabulary, region_feature_dim=DIM)


@pytest.fixture
def gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gallery:
    """Texts and images; projections are fitted to them in two steps."""
    monkeypatch.setattr("comodal.tasks.retrieval.first_stage.NUM_STEPS", 2)
    store = write_store(tmp_path / "regions", some_images([3, 6, 3, 6]))
    return Gallery(captions_of(SENTENCES[:4], IMAGES[:4]), store, WordPieceTokenizer.from_texts(SENTENCES), 16, 5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_embedder(precision: str):
    with fake_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("comodal.hardware.has_native_bf16", lambda _: True)
        embedder = Embedder(
            L3Net(make_small_l3net_config(8, 64)).eval(), EmbedderOptions(precision=precision, device="cuda:0"), {}
        )
        vectors, silent = embedder.embed_audio(np.ones((3, 48_000), np.float32))
        assert vectors.shape == (3, 4 * 3 * 64)
        assert not silent.any()
        assert embedder.embed_images(np.zeros((3, 64, 64, 3), np.uint8)).shape == (3, 4 * 4 * 64)
        quick = make_fast_l3net(L3Net(make_small_l3net_config(8, 64)).eval().to(GPU), torch.bfloat16)
        assert quick.embed_image(torch.zeros(3, 3, 64, 64, dtype=torch.uint8, device=GPU)).device == GPU
        assert quick.embed_audio(torch.zeros(3, 48_000, device=GPU)).device == GPU


def test_regions_are_pooled_on_the_device_together():
    with fake_gpu():
        network = L3Net(make_small_l3net_config(8, 64)).eval().to(GPU)
        shapes = []

        def maps(pictures: Tensor) -> list[Tensor]:
            shapes.append(tuple(pictures.shape))
            return compute_l3net_maps(network, pictures)

        source = PooledRegions(Backbone("L3-Net", "", maps, 64, 8, "cuda:0"), cells=2, maps="all")
        shapes.clear()
        boxes = np.array([[0, 0, 20, 30], [5, 5, 60, 60]], np.float32)
        pictures = [np.zeros((64, size, 3), np.uint8) for size in (64, 96, 64)]
        given = (boxes, boxes[:1], boxes)
        found = source.extract_batch([source.scale_image(*both) for both in zip(pictures, given, strict=True)])
        assert [of_one.features.shape for of_one in found] == [(n, source.feature_dim) for n in (2, 1, 2)]
        assert shapes == [(2, 3, 64, 64), (1, 3, 64, 96)]


@pytest.mark.parametrize("folder", [*CAFFE, *LXMERT], ids=lambda folder: folder.name)
@pytest.mark.parametrize("given", [False, True])
def test_bottom_up_attentions_detector(folder: Path, given: bool):
    picture, boxes = np.zeros((90, 120, 3), np.uint8), np.array([[4, 5, 60, 70], [0, 0, 119, 89]], np.float32)
    rules = caffe_rules(folder) if folder in CAFFE else lxmert_rules(folder)
    model = copy.deepcopy(c4_of(folder))
    with fake_gpu(waits=True):
        found = C4Extractor(model, rules, device="cuda:0")(picture, boxes if given else None)
    assert found.features.shape == (len(found.boxes), model.config.feature_dim)
    assert len(found.boxes) == 2 or not given


@pytest.mark.parametrize("folder", PYRAMID, ids=lambda folder: folder.name)
@pytest.mark.parametrize("given", [False, True])
def test_12_in_1s_detector(folder: Path, given: bool):
    picture, boxes = np.zeros((90, 120, 3), np.uint8), np.array([[4, 5, 60, 70], [0, 0, 119, 89]], np.float32)
    model = copy.deepcopy(fpn_of(folder))
    with fake_gpu(waits=True):
        found = FPNExtractor(model, fpn_rules(folder), "cuda:0")(picture, boxes if given else None)
    assert len(found.features) == len(found.boxes)
    assert len(found.boxes) == 2 or not given


@pytest.mark.parametrize("task", TASKS)
def test_asking_every_kind_of_task(task: str):
    head, _, batch = TASKS[task]
    with fake_gpu(), torch.inference_mode(), FakeCompute(precision="bf16").autocast():
        model = TaskModel(TaskConfig(CONFIG, (head,))).eval().to(GPU)
        assert score_batch(model, "h", batch.to(GPU)).device == GPU


def make_l3net_pipeline() -> AudioVisualPipeline:
    embedder = Embedder(
        L3Net(make_small_l3net_config(8, 64)).eval(), EmbedderOptions(precision="bf16", device="cuda:0"), {}
    )
    return AudioVisualPipeline(Path(), embedder, FakeCompute(precision="bf16"), has_fusion=True)


def make_joint_pipeline(changed: dict[str, object]) -> JointEmbeddingPipeline:
    model = AVENet(replace(SMALL_AVE_NET_CONFIG, width=4, **changed)).eval().to(GPU)
    return JointEmbeddingPipeline(model, FakeCompute(precision="bf16"))


@pytest.mark.parametrize("system", ["L3-Net", *AVE_NETS])
def test_match_and_localize(system: str):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 3 * 48_000).astype(np.float32)
    picture = np.zeros((64, 96, 3), np.uint8)
    with fake_gpu(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("comodal.hardware.has_native_bf16", lambda _: True)
        pipeline = make_l3net_pipeline() if system == "L3-Net" else make_joint_pipeline(AVE_NETS[system])
        found = pipeline.match(picture, noise, 48_000)
        position_map = pipeline.localize(picture, noise, 48_000)
    assert [window.probability for window in found.windows] == [0.5] * 3  # the fake GPU's margins are 0
    assert position_map.ndim == 2
    assert position_map.shape[1] > position_map.shape[0]


@pytest.mark.parametrize("changed", AVE_NETS.values(), ids=AVE_NETS)
def test_ave_net_embeds_and_scores_pairs(changed: dict[str, object]):
    with fake_gpu(), torch.inference_mode():
        pipeline = make_joint_pipeline(changed)
        images = pipeline.embed_image([np.zeros((64, 96, 3), np.uint8)] * 3)
        vectors, seconds = pipeline.embed_audio(np.zeros(2 * 48_000, np.float32), 48_000)
        assert (len(images), len(vectors), len(seconds)) == (3, 2, 2)
        model = pipeline.model
        image, audio = torch.from_numpy(images).to(GPU), torch.from_numpy(vectors).to(GPU)
        assert model.fuse_all_pairs(image, audio).device == model.score_all_pairs(image, audio).device == GPU
        assert model.fuse_pairs(image[:2], audio).device == GPU


@pytest.mark.parametrize("shared", [{}, {"task_tokens": 20}, {"contrastive_dim": 16}], ids=str)
def test_retrieval_scores(shared: dict[str, object], gallery: Gallery):
    texts, images = len(gallery.lengths), len(gallery.counts)
    with fake_gpu():
        model = ViLBERT(replace(RETRIEVAL, **shared)).eval()
        scorer = PairScorer(model, gallery, FakeCompute(precision="bf16"))
        assert scorer.score_all_pairs().shape == (texts, images)
        summaries = scorer.compute_summaries("texts", np.arange(texts))
        assert summaries.device.type == "cpu"
        assert len(summaries) == texts
        if "contrastive_dim" in shared:
            assert scorer.compute_contrastive_matrix().shape == (texts, images)


def test_two_stages_of_retrieval_with_a_fine_tuned_head(gallery: Gallery):
    with fake_gpu():
        model = TaskModel(TaskConfig(RETRIEVAL, (RETRIEVAL_HEAD,))).eval().to(GPU)
        score = select_scoring_head(model, zero_shot=False)
        scorer = PairScorer(model.vilbert, gallery, FakeCompute(precision="bf16"), score=score)
        encodings = DualEncoder(DUAL_OF_GALLERY).eval()
        for first_stage in (fit_projections(scorer, 0), embed_gallery(encodings, gallery, scorer.compute)):
            search = TwoStageSearch(scorer, first_stage)
            texts = np.arange(len(gallery.lengths))
            correct = list_text_answers(gallery)
            assert len(search.rank_images_for_texts(texts, correct, 2).reranked) == len(gallery.pairs)


def test_a_search_of_images(gallery: Gallery):
    tokenizer = WordPieceTokenizer.from_texts(SENTENCES)
    rows = np.arange(4)
    with fake_gpu():
        compute = FakeCompute(precision="bf16")
        pipeline = VisionLanguagePipeline(Path(), ViLBERT(RETRIEVAL).eval(), tokenizer, {}, compute)
        images = IndexedImages(Path(), Path(), gallery.store, list("abcd"), rows, 0)
        maps = fit_projections(PairScorer(pipeline.vilbert, gallery, compute), 0)
        vectors = torch.zeros(len(gallery.store), 128)
        training = FirstStageTraining("", "", 1, 1)
        stage = FirstStage(training, maps, torch.zeros(1, dtype=torch.int64), torch.arange(4), vectors)
        found = Searcher(pipeline, images, stage, 2, compute).search(SENTENCES[0], 2)
    assert [(hit.path.name, hit.score) for hit in found.best] == [("a", 0.5), ("b", 0.5)]


def test_the_dual_encoder_embeds_texts_and_images():
    tokenizer = WordPieceTokenizer.from_texts(SENTENCES)
    with fake_gpu(), torch.inference_mode():
        model = DualEncoder(replace(DUAL_OF_GALLERY, image_pooling="attention")).eval().to(GPU)
        pipeline = DualEncoderPipeline(Path(), model, tokenizer, {}, FakeCompute(precision="bf16"))
        regions = torch.zeros(2, 3, DIM, device=GPU)
        assert pipeline.embed_text(SENTENCES[:2]).shape == (2, DUAL.embedding_dim)
        assert model.embed_image(regions, None).device == GPU


def test_the_vectors_of_a_search():
    """Of AVE-Net and of a dual encoder with an image network; the products are computed on the CPU."""
    image, tokenizer = np.zeros((40, 40, 3), np.uint8), WordPieceTokenizer.from_texts(SENTENCES)
    lite = {"image_backbone": "efficientnet_lite0", "region_feature_dim": 1280, "image_size": 32}
    with fake_gpu(), torch.inference_mode():
        model = DualEncoder(replace(DUAL, vocabulary=tokenizer.size, **lite)).eval().to(GPU)
        dual = DualEncoderPipeline(Path(), model, tokenizer, {}, FakeCompute(precision="bf16"))
        ave = JointEmbeddingPipeline(AVENet(SMALL_AVE_NET_CONFIG).eval().to(GPU), FakeCompute(precision="bf16"))
        for pipeline in (dual, ave):
            space = make_embedding_space(pipeline)
            assert space.embed_images([image, image]).shape == (2, space.dims["image"])
        assert space.embed_windows(np.zeros((2, space.sample_rate), np.float32)).shape == (2, space.dims["audio"])


@pytest.mark.parametrize("given", [False, True])
def test_torchvisions_detector(given: bool):
    picture, boxes = np.zeros((90, 120, 3), np.uint8), np.array([[4, 5, 60, 70], [0, 0, 119, 89]], np.float32)
    model = fasterrcnn_mobilenet_v3_large_fpn(weights=None, weights_backbone=None, num_classes=7, min_size=64).eval()
    with fake_gpu(waits=True):
        found = FasterRCNNExtractor("detector", model, 5, "cuda:0")(picture, boxes if given else None)
    assert found.classes.shape == (len(found.boxes), 7)
    assert len(found.boxes) == (2 if given else 5)


def test_detr():
    transformers = pytest.importorskip("transformers")
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "num_queries": 9, "num_labels": 5}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "d_model": 16}
    model = transformers.DetrForObjectDetection(transformers.DetrConfig(**tiny_backbone(), **sizes, **layers)).eval()
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 100})
    with fake_gpu():
        found = DetrExtractor("detr", model, processor, 4, "cuda:0")(np.zeros((90, 120, 3), np.uint8))
    assert found.features.shape == (4, 16)
    assert found.classes.shape == (4, 6)
