"""One page that shows what a run has learnt; a single HTML file that needs nothing else."""

import base64
import html
import io
import json
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from comodal.analysis.curves import draw_curves
from comodal.analysis.describe import describe_run, flattened, read_json, read_lines
from comodal.analysis.units import draw_image_units, draw_sound_units, read_moments
from comodal.analysis.verdicts import draw_histogram, draw_pairs, judge
from comodal.errors import DataError
from comodal.files import write_whole
from comodal.models.l3net import L3Net, load_l3net

STYLE = """
:root { color-scheme: light; --ink: #1f2933; --soft: #5f6c7b; --line: #e3e8ee; --accent: #3b6ea5; }
body { margin: 0; background: #f6f8fa; color: var(--ink); font: 16px/1.55 system-ui, "Segoe UI", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 2.2rem 1.2rem 4rem; }
h1 { font-size: 1.9rem; margin: 0 0 .2rem; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; }
p { margin: .3rem 0 .8rem; color: var(--soft); max-width: 75ch; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem 1.4rem; }
section { margin-top: 1.2rem; }
img { max-width: 100%; height: auto; display: block; margin: .4rem auto; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
th, td { text-align: left; padding: .4rem .6rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { color: var(--soft); font-weight: 600; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { background: #eef2f6; border-radius: 4px; height: .8rem; min-width: 12rem; }
.bar span { display: block; height: 100%; border-radius: 4px; background: #b8c4d0; }
.trained .bar span { background: var(--accent); }
.trained td { font-weight: 600; }
.facts { display: flex; flex-wrap: wrap; gap: .8rem; margin-top: 1.1rem; }
.fact { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: .6rem 1rem; }
.fact b { display: block; font-size: 1.35rem; }
.fact span { color: var(--soft); font-size: .85rem; }
.pair { display: flex; flex-wrap: wrap; gap: 1rem; justify-content: center; }
.pair figure { margin: 0; flex: 1 1 360px; }
figcaption { color: var(--soft); font-size: .85rem; text-align: center; }
summary { cursor: pointer; font-weight: 600; }
"""


def write_report(
    run: Path, out: Path, data: Path | None = None, results: list[Path] | None = None, pairs: int = 64, seed: int = 1
) -> None:
    """Writes one HTML page about a run: curves, scores beside baselines, pairs with verdicts, top activations.

    Args:
        run: the run's folder.
        out: the page to write.
        data: the shards that it was trained on (or others): pairs and activations are of their validation split.
        results: folders that `evaluate ... --out` wrote.
        pairs: how many held-out pairs are judged.
        seed: of the pairs.

    Raises:
        DataError: the run, the shards or the results are not there.

    Examples:
        comodal report RUN report.html --data shards/ --results '[results/esc10, results/pictures]'
    """
    if not (run / "metrics.jsonl").is_file():
        raise DataError(f"{run}: no run here (no metrics.jsonl)")
    parts = [header(run), curves(run)]
    if results:
        parts += [scores(results), confusions(results)]
    if data is not None:
        model = load_l3net(run)
        if not isinstance(model, L3Net):
            raise DataError(f"{run}: pairs and units are shown of L3-Net, not of {type(model).__name__}")
        split = validation_split(data)
        parts += [verdicts(model, split, pairs, seed), activations(model, split)]
    parts.append(settings(run))
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(run.name)}: what was learnt</title><style>{STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    write_whole(out, page.encode())


def validation_split(data: Path) -> Path:
    """The held-out split of a folder of shards, or the folder itself if it is a split."""
    return next((data / name for name in ("validation", "test") if any((data / name).glob("*.index"))), data)


def picture(figure: Figure, words: str) -> str:
    """A figure within the page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return embedded(png.getvalue(), words)


def embedded(png: bytes, words: str) -> str:
    """A PNG within the page."""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def section(title: str, text: str, body: str) -> str:
    """A titled part of the page."""
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{body}</section>"


def header(run: Path) -> str:
    """The run's name and its main figures."""
    found = describe_run(run)
    facts = []
    if "validation" in found:
        facts.append((f"{found['validation']['accuracy']:.3f}", "accuracy on held-out pairs (chance: 0.5)"))
    if "train" in found:
        facts.append((f"{found['train']['step']:,}", "steps of training"))
        facts.append((f"{found['train'].get('pairs_per_second', 0.0):,.0f}", "pairs a second at the end"))
        facts.append((f"{found['train'].get('seconds', 0.0) / 60:.1f}", "minutes of training"))
    if "model" in found:
        facts.append((f"{found['model']['parameters']:,}", "parameters"))
    boxes = "".join(f'<div class="fact"><b>{number}</b><span>{words}</span></div>' for number, words in facts)
    return (
        f"<h1>What was learnt: {html.escape(run.name)}</h1>"
        "<p>From videos alone: does this picture go with this sound? No label was used.</p>"
        f'<div class="facts">{boxes}</div>'
    )


def curves(run: Path) -> str:
    """Loss and accuracy by step."""
    figure = draw_curves(read_lines(run / "metrics.jsonl"))
    text = "The pretext task: does a frame belong with a second of sound? Half of the pairs do."
    return section("Learning", text, picture(figure, "loss and accuracy by step"))


def scores(results: list[Path]) -> str:
    """Each evaluation's systems, the trained one beside its baselines."""
    rows = []
    for folder in results:
        found = read_json(folder / "results.json")
        for name in [key.removesuffix(".low") for key in found if key.endswith(".low")]:
            system = name.split(".")[-1]
            interval = f"{found[f'{name}.low']:.3f} to {found[f'{name}.high']:.3f}"
            rows.append(
                f'<tr class="{html.escape(system)}"><td>{html.escape(folder.name)}</td><td>{html.escape(system)}</td>'
                f'<td class="number">{found[name]:.3f}</td><td class="number">{interval}</td>'
                f'<td><div class="bar"><span style="width:{100 * found[name]:.1f}%"></span></div></td></tr>'
            )
    head = "<tr><th>task</th><th>features</th><th>accuracy</th><th>95 %</th><th></th></tr>"
    text = "A linear classifier on frozen features: of this network, of an untrained one, and plain ones."
    return section("What the features are good for", text, f"<table>{head}{''.join(rows)}</table>")


def confusions(results: list[Path]) -> str:
    """The confusion matrices of the trained features."""
    figures = [
        f"<figure>{embedded((folder / 'confusion.png').read_bytes(), f'confusion matrix of {folder.name}')}"
        f"<figcaption>{html.escape(folder.name)}</figcaption></figure>"
        for folder in results
        if (folder / "confusion.png").is_file()
    ]
    text = "Rows are true classes, columns are answers from the trained features."
    return section("Which classes are confused", text, f'<div class="pair">{"".join(figures)}</div>')


def verdicts(model: L3Net, split: Path, pairs: int, seed: int) -> str:
    """Held-out pairs with the model's verdict."""
    found = judge(model, split, pairs, seed)
    text = (
        f"Of {len(found.together)} held-out pairs drawn for this page, {found.accuracy:.1%} are judged rightly (green)."
    )
    body = picture(draw_pairs(model, found), "pairs with verdicts") + picture(draw_histogram(found), "P(together)")
    return section("Do they belong together?", text, body)


def activations(model: L3Net, split: Path, count: int = 200) -> str:
    """What single units of the last convolution respond to."""
    moments = read_moments(split, model, count)
    text = (
        f"The units of conv4_2 that stand out most, each with its strongest of {len(moments.names)} held-out moments."
    )
    body = picture(draw_image_units(model, moments), "strongest pictures of units, lit where the unit fires")
    return section("What single units see and hear", text, body + picture(draw_sound_units(model, moments), "sounds"))


def settings(run: Path) -> str:
    """The resolved settings, folded away."""
    path = run / "config.yaml"
    values = yaml.safe_load(path.read_text()) if path.is_file() else {}
    values = json.loads(json.dumps(values, default=str))
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>" for name, value in flattened(values, "")
    )
    return f"<section><details><summary>Settings</summary><table>{rows}</table></details></section>"
