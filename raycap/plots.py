"""Charts and panels. Each is drawn on a figure of its own: no screen, no global state."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from raycap.metrics import headline_scores
from raycap.storage import whole_path
from raycap.terminal import printable

COLUMNS = 5
TILE_INCHES = 2.2
BINS = 40
CHART_INCHES = (4.8, 2.5)
LONGEST_NAME = 32  # in a legend
LONGEST_WORD = 20  # over a tile
MOST_TILES = 60
WIDE = 15  # a range whose end is this many times its beginning gets a logarithmic axis
FEW = 6  # whole numbers that get a column each
# Readable on white and on black: lines and text, and the series in their order.
INK = "#767676"
COLOURS = ("#2f80c3", "#d9702b", "#3a9d5d", "#a05fc4", "#b8901f", "#c04f78")


def attention_panel(
    pixels: NDArray[np.uint8],  # [S, S, 3], what the encoder saw
    words: Sequence[str],
    attention: NDArray[np.float32],  # [T, P], one map for each word; P is a square number
    aspect: float = 1.0,  # height by width of the picture as a viewer shows it
) -> Figure:
    """The picture, then one tile for each word with what the decoder looked at as it wrote it."""
    side = math.isqrt(attention.shape[1])
    words = words[: MOST_TILES - 1]
    rows = math.ceil((len(words) + 1) / COLUMNS)
    figure = Figure(
        figsize=(COLUMNS * TILE_INCHES, rows * (TILE_INCHES * aspect + 0.35)), layout="constrained"
    )
    tiles = figure.subplots(rows, COLUMNS, squeeze=False).flat
    # In widths of the picture: a squashed picture gets its own shape back.
    extent = (0.0, 1.0, 0.0, aspect)
    grey = np.asarray(pixels.mean(axis=2))
    for number, tile in enumerate(tiles):
        tile.axis("off")
        if number == 0:
            tile.imshow(pixels, extent=extent, interpolation="bilinear")
        elif number <= len(words):
            # Each map on its own scale: what matters is where a word looked, not how sharply.
            looked_at = _enlarged(attention[number - 1].reshape(side, side), len(pixels))
            tile.imshow(
                grey, extent=extent, cmap="gray", vmin=-60, vmax=300, interpolation="bilinear"
            )
            tile.imshow(
                looked_at, extent=extent, cmap="inferno", vmin=0, vmax=1, alpha=0.7 * looked_at
            )
            word = printable(words[number - 1])
            if len(word) > LONGEST_WORD:
                word = f"{word[: LONGEST_WORD - 1]}…"
            tile.set_title(word, fontsize=11, parse_math=False)  # "$" begins no formula
    return figure


def _enlarged(cells: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """A small map [H, H] as [size, size], smooth, its largest value 1."""
    cells = np.nan_to_num(cells, nan=0.0, posinf=1.0, neginf=0.0)
    picture = Image.fromarray(cells / max(float(cells.max()), 1e-9)).resize(
        (size, size), Image.Resampling.BICUBIC
    )
    enlarged: NDArray[np.float32] = np.asarray(picture).clip(0, 1)
    return enlarged


def histogram(series: Mapping[str, NDArray[np.float64]], label: str, bins: int = BINS) -> Figure:
    """The distribution of values, the series over one another, each in shares of its pictures."""
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = _axes(figure, label, "share of pictures")
    finite = {}
    for name, values in series.items():
        # The arithmetic of edges overflows for larger numbers than these.
        finite[name] = values[np.isfinite(values)].clip(-1e100, 1e100)
    every = np.concatenate([*finite.values(), np.zeros(0)])
    edges = np.linspace(0, 1, bins + 1)
    if len(every):
        try:
            edges = np.histogram_bin_edges(every, bins=bins)
        except ValueError:  # values so close that there are no numbers between them
            low, high = float(every.min()), float(every.max())
            edges = np.linspace(low - max(abs(low), 1), high + max(abs(high), 1), bins + 1)
    for values, colour in zip(finite.values(), _colours(len(finite)), strict=True):
        shares = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(
            shares, edges, fill=True, facecolor=(colour, 0.35), edgecolor=colour, linewidth=1.6
        )
    if len(finite) > 1:
        _legend(axes, list(finite))
    return figure


def curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], across: str, up: str
) -> Figure:
    """Lines through points: for each name the values across, and the values up."""
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = _axes(figure, across, up)
    for (places, values), colour in zip(series.values(), _colours(len(series)), strict=True):
        axes.plot(
            places, values, color=colour, linewidth=1.8, marker="o" if len(places) < 60 else ""
        )
    if len(series) > 1:
        _legend(axes, list(series))
    return figure


def bundle(lines: Mapping[str, Sequence[float]], first: str, across: str, up: str) -> Figure:
    """Many lines from 1 on in one colour, and over them the one named `first` in another."""
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = _axes(figure, across, up)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for name, values in sorted(lines.items(), key=lambda line: line[0] == first):
        colour, width = (COLOURS[1], 2.4) if name == first else ((COLOURS[0], 0.5), 1.2)
        axes.plot(
            range(1, len(values) + 1),
            values,
            color=colour,
            linewidth=width,
            marker="o",
            markersize=2 * width,
        )
    return figure


def scatter(
    places: Sequence[Any], values: Sequence[float], first: int, across: str, up: str
) -> Figure:
    """A point for each pair, the one at `first` marked; a few values get a column each."""
    figure = Figure(figsize=CHART_INCHES, layout="constrained")
    axes = _axes(figure, across, up)
    numbers = all(
        isinstance(place, int | float) and not isinstance(place, bool) for place in places
    )
    kinds = list(dict.fromkeys(sorted(places) if numbers else sorted(places, key=str)))
    if numbers and (len(kinds) > FEW or any(isinstance(kind, float) for kind in kinds)):
        if min(places) > 0 and max(places) >= WIDE * min(places):
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.set_xticks(
            range(len(kinds)), [str(kind)[:LONGEST_NAME] for kind in kinds], parse_math=False
        )
        axes.set_xlim(-0.5, len(kinds) - 0.5)
        places = [kinds.index(place) for place in places]
    axes.margins(y=0.1)
    axes.plot(places, values, linestyle="", marker="o", markersize=6, color=(COLOURS[0], 0.6))
    axes.plot(
        places[first], values[first], linestyle="", marker="*", markersize=13, color=COLOURS[1]
    )
    return figure


def _colours(count: int) -> list[str]:
    return [COLOURS[number % len(COLOURS)] for number in range(count)]


def _axes(figure: Figure, across: str, up: str) -> Axes:
    """Axes without a box, in one colour."""
    axes = figure.subplots()
    axes.set_xlabel(across, color=INK, parse_math=False)
    axes.set_ylabel(up, color=INK, parse_math=False)
    axes.tick_params(colors=INK)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("bottom", "left"))
        spine.set_color(INK)
    return axes


def _legend(axes: Axes, names: Sequence[str]) -> None:
    """Names come from outside: "$" begins no formula, and a name that begins with '_' is shown."""
    legend = axes.legend(
        [str(number) for number in range(len(names))], frameon=False, labelcolor=INK
    )
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name if len(name) <= LONGEST_NAME else f"…{name[1 - LONGEST_NAME :]}")


def svg(figure: Figure) -> str:
    """A figure as an <svg> element for a page: transparent, in the colour of its text."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "raycap"}):
        figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    element = written.getvalue()
    element = element[element.index("<svg") :].replace(INK, "currentColor")
    # Sizes in points would not shrink on a narrow screen. Ids that nothing refers to would be
    # repeated in every figure.
    element = re.sub(r' (?:width|height)="[\d.]+pt"', "", element, count=2)
    return re.sub(r' id="(?!p[0-9a-f]{10}"|m[0-9a-f]{10}")[^"]*"', "", element)


def save(figure: Figure, path: Path, notes: Mapping[str, str] | None = None) -> None:
    """Write a figure as PNG, whole or not at all; the notes go into it as texts."""
    with whole_path(path) as part:
        figure.savefig(part, format="png", dpi=150, metadata=dict(notes or {}))


def learning_curve(epochs: Sequence[Mapping[str, Any]]) -> Figure:
    """Loss, accuracy and scores of captions by epoch, from the lines of a training run's log."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    lines = {
        "loss": {"training_loss": "training", "validation_loss": "validation"},
        "token accuracy": {"training_accuracy": "training", "accuracy": "validation"},
        "captions of the validation pictures": {
            name: facts.label for name, facts in headline_scores(epochs[-1]).items()
        },
    }
    best = max((line["epoch"] for line in epochs if line["best"]), default=0)
    for panel, (title, curves) in zip(panels, lines.items(), strict=True):
        for name, label in curves.items():
            known = [line for line in epochs if name in line]
            panel.plot(
                [line["epoch"] for line in known],
                [line[name] for line in known],
                marker=".",
                label=label,
            )
        if best:
            panel.axvline(best, color="grey", linestyle=":", label="kept")
        panel.set_title(title)
        panel.set_xlabel("epoch")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=9)
    return figure
