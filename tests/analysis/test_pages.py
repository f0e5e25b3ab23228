"""Pages escape every name that they show, hold no HTML outside the templates, and are whole in the package."""

import ast
import json
import re
import tomllib
from pathlib import Path
from typing import get_args

import jinja2
import numpy as np
import pytest
import torch
from PIL import Image

import comodal
from comodal.analysis.co_attention import AttentionExample, CoAttentionWeights
from comodal.analysis.pages.attention_page import write_attention_page
from comodal.analysis.pages.html_page import make_page_environment, render_page, write_page
from comodal.analysis.pages.match_page import MatchWindow, write_match_page
from comodal.analysis.pages.page_parts import (
    PageBlock,
    PageColumn,
    PageColumns,
    PageDetails,
    PageFact,
    PageFacts,
    PageImage,
    PageImageRow,
    PageMark,
    PagePlot,
    PageRow,
    PageSection,
    PageTable,
)
from comodal.analysis.pages.token_page import TokenRegion, TokenUse, build_token_page
from comodal.analysis.reports.caption_report import build_retrieval_section
from comodal.analysis.reports.report import write_report
from comodal.analysis.reports.task_examples import TaskPrediction, build_answer_table
from comodal.analysis.reports.task_report import build_task_parts
from comodal.analysis.reports.unit_report import build_unit_parts
from comodal.analysis.unit_activations import ClipExamples
from comodal.hardware import Compute
from comodal.inference.embedding_search.search_results import SearchHit, SearchResult, write_search_page
from comodal.media.image import encode_jpeg
from comodal.models.checkpoint import save_model
from comodal.models.l3net.l3net import L3Net, make_small_l3net_config
from comodal.models.vilbert.heads import Head
from comodal.models.vilbert.task_model import TaskModel, TaskModelConfig
from comodal.tasks.evaluation.results_card import ResultsCard, ScoreEntry, write_card
from tests.analysis.test_inspect_path import write_run
from tests.support.self_contained import check_page
from tests.support.small_tasks import config

PACKAGE = Path(comodal.__file__).parent
TEMPLATES = PACKAGE / "analysis" / "pages" / "templates"
HOSTILE = (
    "<script>alert(1)</script>",
    "[/b]dog",
    '"onerror=alert(1) x="',
    "'><img src=x onerror=alert(1)>",
    "a&amp;b {{ 7 * 7 }}",
)
FILE_NAMES = ("<script>", "[b]dog", '"onerror=x"', "'><img src=x onerror=y>", "a&amp;b {{ 7 * 7 }}")
TAG_NAMES = (
    "a article aside audio b body br button caption code dd details div dl dt em figcaption figure footer form h1 h2 "
    "h3 h4 head header hr html i iframe img input label li link main meta nav ol p path pre rect script section select "
    "small source span strong style sub summary sup svg table tbody td template text textarea tfoot th thead title tr "
    "u ul video"
)
TAG = re.compile(rf"<!doctype|</?({TAG_NAMES.replace(' ', '|')})(?=[\s/>]|$)")
hostile = pytest.mark.parametrize("name", HOSTILE)


def list_strings(path: Path) -> list[tuple[int, str]]:
    """The string literals of a file, pieces of f-strings among them, without docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, described) and node.body
                  and isinstance(node.body[0], ast.Expr)}  # fmt: skip
    return [
        (node.lineno, node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
    ]


@pytest.mark.parametrize("text", ["<p>", "</td>", '<td class="', "<br/>", "<!doctype html>", "x</b>", "<h1>a"])
def test_tags_are_recognized(text: str):
    assert TAG.search(text)


def test_python_files_hold_no_html():
    found = [
        f"{path}:{line} {text[:40]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line, text in list_strings(path)
        if TAG.search(text)
    ]
    assert not found


def test_templates_leave_escaping_to_jinja_and_are_in_the_wheel():
    paths = sorted(TEMPLATES.iterdir())
    assert {"base.html", "blocks.html", "page.html"} <= {path.name for path in paths}
    for path in paths:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\|\s*(safe|tojson|xmlattr)|autoescape|\son[a-z]+=|<script", text), path
        assert not re.search(r"\w=\{\{", text), f"{path}: an attribute without quotation marks"
    project = tomllib.loads((PACKAGE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))
    globs = project["tool"]["setuptools"]["package-data"]["comodal"]
    assert set(paths) <= {path for pattern in globs for path in PACKAGE.glob(pattern)}


def measure_contrast(first: str, second: str) -> float:
    """The contrast ratio of two colors (WCAG 2.2, "relative luminance")."""
    values = np.array([[int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)] for color in (first, second)])
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    low, high = sorted(linear @ [0.2126, 0.7152, 0.0722])
    return (high + 0.05) / (low + 0.05)


def test_text_is_readable_in_light_and_in_dark():
    assert measure_contrast("#000000", "#ffffff") == pytest.approx(21.0)
    assert measure_contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # known to fail narrowly
    light, dark = re.findall(r":root \{([^}]*)\}", (TEMPLATES / "base.html").read_text(encoding="utf-8"))
    for scheme in (light, dark):
        colors = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6});", scheme))
        for text in ("ink", "soft", "accent", "correct", "incorrect"):
            assert min(measure_contrast(colors[text], colors[ground]) for ground in ("panel", "ground")) >= 4.5, text


def test_a_name_that_a_template_misses_is_an_error():
    with pytest.raises(jinja2.UndefinedError, match="missing"):
        make_page_environment().from_string("{{ missing }}").render()
    with pytest.raises(jinja2.UndefinedError, match="title"):
        make_page_environment().get_template("page.html").render(sections=[])


@hostile
def test_every_field_of_every_block_is_escaped(name: str):
    blocks = [
        PagePlot("data:image/png;base64,", name),
        PageImageRow([PageImage(name, "data:image/png;base64,", name, name, "data:audio/mpeg;base64,")], name, name),
        PageTable(name, [PageColumn(name), PageColumn(name, "number"), PageColumn(name, "bar")],
                  [PageRow((name, name, 0.5), is_main=True)]),
        PageFacts([PageFact(name, name)]),
        PageMark(name, is_correct=True),
        PageMark(name, is_correct=False),
    ]  # fmt: skip
    nested = [PageColumns([PageDetails(name, blocks, is_open=True)])]
    assert {type(block) for block in [*blocks, *nested, nested[0].blocks[0]]} == set(get_args(PageBlock))
    page = check_page(render_page(name, [PageSection(name, name, nested)]))
    texts = [text for tag, text in page.texts if tag != "style"]
    assert set(texts) == {name, "0.500"}
    # page and section: title of the window, h1, h2, p; row: label, note, title, caption; table: caption, 3 + 2 cells;
    # a fact, two marks, a summary
    assert texts.count(name) == 4 + 4 + 6 + 2 + 2 + 1
    assert set(page.values_of("img", "alt") + page.values_of("audio", "aria-label")) == {name}


def test_a_report_escapes_its_run_and_its_evaluations(tmp_path: Path):
    for number, (name, text) in enumerate(zip(FILE_NAMES, HOSTILE, strict=True)):
        parts = tmp_path / str(number)
        run = write_run(parts / name)
        (run / "config.yaml").write_text(json.dumps({"recipe": text, text: 1}))
        probed, carded = parts / "probed" / name, parts / "carded" / name
        probed.mkdir(parents=True)
        (probed / "results.json").write_text(json.dumps({f"{text}.{text}{end}": 0.5 for end in ("", ".low", ".high")}))
        card = ResultsCard("vqa", text, text, {text: ScoreEntry(0.5)}, text, {text: 1}, regions=text)
        write_card(card, carded)
        write_report(run, parts / "report.html", results=[probed, carded])
        page = check_page((parts / "report.html").read_text())
        assert page.texts_of("h1") == [f"Report: {name}"]
        shown = [cell for row in page.rows() for cell in row]
        assert name in shown and shown.count(text) >= 4  # task and system of the probe, a score, a setting
        assert f"{text}, {text}" in page.texts_of("h2")


def test_units_escape_the_classes_of_their_examples():
    torch.manual_seed(0)
    examples = ClipExamples(torch.randint(0, 256, (5, 3, 24, 24), dtype=torch.uint8), 0.1 * torch.randn(5, 48_000),
                          HOSTILE, HOSTILE)  # fmt: skip
    page = check_page(
        render_page("units", build_unit_parts(L3Net(make_small_l3net_config(1, 24)).eval(), examples, seed=0))
    )
    for name in HOSTILE:  # each unit shows all five examples
        assert name in page.texts_of("figcaption")
        assert f"audio of {name}" in page.values_of("audio", "aria-label")
    notes = {text.rpartition(":")[0] for text in page.texts_of("span")}
    assert notes <= set(HOSTILE) and notes


@hostile
def test_attention_answers_and_tokens_escape_texts_and_names(name: str, tmp_path: Path):
    layer = CoAttentionWeights(np.full((3, 2), 0.5, np.float32), np.full((2, 3), 1 / 3, np.float32))
    example = AttentionExample(name, name, np.zeros((40, 60, 3), np.uint8), np.array([[0.0, 0.0, 30.0, 40.0]]),
                               ["[CLS]", name, "[SEP]"], [layer, layer], [1])  # fmt: skip
    write_attention_page(tmp_path / "why.html", [example], [[(name, 0.5)]])
    page = check_page((tmp_path / "why.html").read_text())
    assert name in page.texts_of("h2")
    assert page.rows().count([name, "0.500"]) == 1 and page.rows().count([name, "0.333"]) == 2
    assert page.texts_of("b") == [name, name]

    table = build_answer_table(TaskPrediction([name, "b"], np.array([0.75, 0.25]), np.array([1.0, 0.0])))
    assert check_page(render_page("answers", [PageSection("", "", [table])])).rows()[0] == [name, "0.750", "correct"]

    use = TokenUse(1, 1)
    use.add(0, np.array([0]), np.array([0.1], np.float32))
    page = check_page(build_token_page(name, use, (), {0: [TokenRegion(name, 9, 9, (0, 1, 2, 3))]}, None))
    assert page.texts_of("h1") == [name] and f"{name}: 0, 1, 2, 3" in page.texts_of("figcaption")


def test_matches_searches_retrieval_and_tasks_escape_texts_and_file_names(tmp_path: Path):
    for name, text in zip(FILE_NAMES, HOSTILE, strict=True):
        jpeg = encode_jpeg(np.zeros((16, 16, 3), np.uint8))
        write_match_page(tmp_path / "match.html", text, 0.5, [MatchWindow(0.5, None, None, None, None, jpeg)])
        assert check_page((tmp_path / "match.html").read_text()).texts_of("h1") == [text]

        Image.new("RGB", (16, 16)).save(tmp_path / f"{name}.png")
        hits = [SearchHit(tmp_path / f"{name}.png", 0.5)]
        write_search_page(tmp_path / "search.html", SearchResult(text, "score", hits, 1, 1, None, None, 0.1))
        page = check_page((tmp_path / "search.html").read_text())
        assert page.texts_of("h1") == [text] and page.values_of("img", "alt") == [f"{name}.png"]

        (tmp_path / name).mkdir()
        recalls = {f"{prefix}.{direction}.r{cut}": 0.5
                   for prefix in ("retrieval", "retrieval.untrained", "retrieval.chance_level")
                   for direction in ("text_to_image", "image_to_text") for cut in (1, 5, 10)}  # fmt: skip
        counts = {"retrieval.images": 5, "retrieval.captions": 25}
        (tmp_path / name / "results.json").write_text(json.dumps(recalls | counts))
        page = check_page(render_page("retrieval", [build_retrieval_section(tmp_path / name)]))
        assert page.tables[0].caption == f"Recall: {name}"

        run = tmp_path / name
        save_model(TaskModel(TaskModelConfig(config(20), (Head("r", "regions", 1),))), run / "model", {"recipe": text})
        line = {"step": 1, "split": "validation", "loss": 1.0, "accuracy": 0.5}
        (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        (run / "config.yaml").write_text(json.dumps({"model": name, "start_from": "pretrained", "ablate": text}))
        page = check_page(render_page("task", build_task_parts(run, None, Compute(torch.device("cpu")))))
        assert page.texts_of("h2")[0] == f"ViLBERT: {text}"
        assert f"from the weights of {name}, without the {text}." in page.text


def test_file_names_that_are_no_text_do_not_stop_a_page(tmp_path: Path):
    write_page(tmp_path / "page.html", "run-\udcff", [])
    assert check_page((tmp_path / "page.html").read_text()).texts_of("h1") == ["run-\\udcff"]
