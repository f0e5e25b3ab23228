"""Building blocks of a self-contained HTML page: figures, tables, sections and audio players."""

import base64
import html
import io
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float, UInt8
from matplotlib.figure import Figure

from comodal.analysis.inspect_path import describe_run, flatten_settings
from comodal.errors import RecipeError
from comodal.files import write_bytes_atomically
from comodal.media.image import encode_jpeg
from comodal.text_files import read_yaml

PAGE_STYLE = """
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
.row { display: flex; flex-wrap: wrap; gap: .6rem; padding: .5rem 0; border-top: 1px solid var(--line); }
.row > b { flex: 0 0 4.5rem; font-weight: 600; font-size: .9rem; }
.row figure { margin: 0; width: 112px; }
.row img { margin: 0; width: 112px; border-radius: 4px; }
.row audio { width: 112px; height: 28px; display: block; margin-top: 3px; }
"""


def write_page(out: Path, title: str, parts: list[str]) -> None:
    """Writes one HTML file of some parts."""
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{PAGE_STYLE}</style></head>"
        f"<body><main>{''.join(parts)}</main></body></html>\n"
    )
    write_bytes_atomically(out, page.encode())


def embed_figure(figure: Figure, words: str) -> str:
    """A figure embedded in the page."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110)
    return embed_png(png.getvalue(), words)


def embed_png(png: bytes, words: str) -> str:
    """A PNG embedded in the page."""
    return f'<img alt="{html.escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def embed_photo(image: UInt8[np.ndarray, "height width 3"], words: str) -> str:
    """An image embedded in the page as JPEG, a tenth of the size of a PNG."""
    data = base64.b64encode(encode_jpeg(image, quality=85)).decode()
    return f'<img alt="{html.escape(words)}" src="data:image/jpeg;base64,{data}">'


def embed_audio_player(sound: Float[np.ndarray, " samples"], sample_rate: int) -> str:
    """Audio embedded in the page as MP3, which every browser plays: about 15 kB per second."""
    memory = io.BytesIO()
    soundfile.write(memory, np.clip(sound, -1.0, 1.0), sample_rate, format="MP3")
    data = base64.b64encode(memory.getvalue()).decode()
    return f'<audio controls preload="none" src="data:audio/mpeg;base64,{data}"></audio>'


def format_section(title: str, text: str, body: str) -> str:
    """A titled section of the page."""
    return f"<section><h2>{html.escape(title)}</h2><p>{html.escape(text)}</p>{body}</section>"


def format_run_header(run: Path, sentence: str, metric: str, meaning: str) -> str:
    """A run's name and its main metrics.

    Args:
        run: the run's folder.
        sentence: what was trained, and on which data.
        metric: the validation metric to show first.
        meaning: its description.
    """
    found = describe_run(run)
    facts = []
    if "validation" in found:
        facts.append((f"{found['validation'][metric]:.3f}", meaning))
    if "train" in found:
        facts.append((f"{found['train']['step']:,}", "steps of training"))
        facts.append((f"{found['train'].get('samples_per_second', 0.0):,.0f}", "samples a second at the end"))
        facts.append((f"{found['train'].get('seconds', 0.0) / 60:.1f}", "minutes of training"))
    if "model" in found:
        facts.append((f"{found['model']['parameters']:,}", "parameters"))
    boxes = "".join(f'<div class="fact"><b>{number}</b><span>{words}</span></div>' for number, words in facts)
    return (
        f"<h1>What was learned: {html.escape(run.name)}</h1><p>{html.escape(sentence)}</p>"
        f'<div class="facts">{boxes}</div>'
    )


def format_run_settings(run: Path) -> str:
    """The resolved settings, collapsed."""
    path = run / "config.yaml"
    values = read_yaml(path, RecipeError) if path.is_file() else {}
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(value)}</td></tr>"
        for name, value in flatten_settings(values, "")
    )
    return f"<section><details><summary>Settings</summary><table>{rows}</table></details></section>"
