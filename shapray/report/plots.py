"""How a figure looks, and how it becomes a part of the page.

Drawn by matplotlib with colours that stand for those of the page (`INK` is whatever the reader's
scheme makes of ``--ink``), text stays text, and what a browser does not need is left out. No colour
says anything alone: lines differ by their dashes, areas by their hatches.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

INK, MUTED, LINE, PAPER = "#010101", "#020202", "#030303", "#040404"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)), (0, (3, 1)))
MARKERS = "os^Dv"
BANDS = 120  # values more than these are drawn as the quantiles of so many bands
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    LINE: "line",
    PAPER: "paper",
    **{colour: f"s{number}" for number, colour in enumerate(SERIES)},
}
_WIDTH, _HEIGHT = 336, 210  # points, which a phone shows as so many pixels
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "shapray",
    "text.parse_math": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10.5,
    "ytick.labelsize": 10.5,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "legend.columnspacing": 1.2,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "hatch.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
}
_WITHOUT = {"Date": None, "Creator": None, "Format": None, "Type": None}


@dataclass(frozen=True)
class Plot:
    """A figure of the page: what is drawn, and the words below it."""

    svg: Markup
    caption: str | Markup


def plot(
    key: str,
    caption: str | Markup,
    alternative: str,
    draw: Callable[[Axes], None],
    height: float = _HEIGHT,
    left: float = 52,
) -> Plot:
    """Draw on one pair of axes.

    Args:
        key: no other figure of the page has it.
        alternative: the facts that one sees in it, for those who do not see it.
        height: in points.
        left: of the axes, where their labels stand.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH / 72, height / 72))
        axes = figure.subplots()
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        n_lines = -(-len(handles) // 2) if len(handles) > 1 else 0
        top = 10 + 16 * n_lines  # by hand: matplotlib's own layouts take longer than the drawing
        figure.subplots_adjust(left / _WIDTH, 38 / height, 1 - 14 / _WIDTH, 1 - top / height)
        if n_lines:
            figure.legend(handles, labels, loc="upper left", ncols=2, borderaxespad=0)
        return Plot(_svg(figure, key, alternative), caption)


def bar(
    key: str, alternative: str, parts: Sequence[tuple[float, str, str, str]], width: float = 150
) -> Markup:
    """One bar of several parts, without axes.

    Args:
        parts: length, colour, its hatch, and the fill below the hatch.
        width: in points.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(width / 72, 14 / 72))
        of_all = 0.99 / (sum(length for length, *_ in parts) or 1)
        left = 0.005
        for length, colour, hatch, fill in parts:
            if length:
                look: Any = {"facecolor": fill, "edgecolor": colour, "hatch": hatch}
                piece = Rectangle((left, 0.06), length * of_all, 0.88, linewidth=0.8, **look)
                piece.set_transform(figure.transFigure)
                figure.add_artist(piece)
            left += length * of_all
        return _svg(figure, key, alternative)


def segments(
    axes: Axes, starts: Sequence[tuple[Any, Any]], ends: Sequence[tuple[Any, Any]], **style: Any
) -> None:
    """Separate straight lines as a single path."""
    points = np.full((3 * len(starts), 2), np.nan)
    if len(starts):
        points[0::3], points[1::3] = starts, ends
    axes.plot(points[:, 0], points[:, 1], **style)


def logarithmic(axes: Axes) -> None:
    """Values on a logarithmic scale, with labels that are plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    narrow = high < 100 * low
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1,), numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def percents(axis: Axis) -> None:
    """Labels of shares as percentages, with as many decimals as tell them apart."""
    axis.set_major_formatter(
        FuncFormatter(lambda share, _: f"{100 * share:.6g}%".replace("-", "−"))
    )


def strips(
    axes: Axes, rows: Mapping[str, Sequence[float]], label: str, shares: bool = False
) -> None:
    """A line for each row: a tick for every number (quantiles of many), a mark at the median."""
    for place, numbers in enumerate(rows.values()):
        found = np.asarray(numbers, float)
        found = found[np.isfinite(found)]
        if not len(found):
            continue
        if len(found) > BANDS:
            found = np.quantile(found, np.linspace(0, 1, BANDS))
        y = len(rows) - 1 - place
        segments(
            axes,
            [(x, y - 0.26) for x in found],
            [(x, y + 0.26) for x in found],
            color=SERIES[0],
            linewidth=1,
        )
        axes.plot(np.median(found), y, "D", color=INK, markersize=5.5)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    axes.set_yticks(range(len(rows)), list(rows)[::-1])
    axes.grid(axis="y", visible=False)
    axes.set(ylim=(-0.6, len(rows) - 0.4), xlabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    if shares:
        percents(axes.xaxis)


def _svg(figure: Figure, key: str, alternative: str) -> Markup:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=_WITHOUT)
    source = buffer.getvalue()
    source = source[source.index("<svg") :]
    # The style sheet would hold for the whole page; `style.css` says the same of figures alone.
    source = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", source, flags=re.S
    )
    for sentinel, variable in _VARIABLES.items():
        source = source.replace(sentinel, f"var(--{variable})")
    source = re.sub(r"<[^>]+>", lambda tag: _shorter(tag[0]), source)
    used = dict.fromkeys(re.findall(r"#([\w-]+)", source))
    new = {name: f"{key}-{number}" for number, name in enumerate(used)}
    source = re.sub(
        r' id="([^"]*)"', lambda found: f' id="{new[found[1]]}"' if found[1] in new else "", source
    )
    source = re.sub(r"#([\w-]+)", lambda found: f"#{new[found[1]]}", source)
    source = re.sub(r'<g>\s*<path d="[^"]*" style="fill:none"/>\s*</g>', "", source)
    source = re.sub(r"<defs>\s*</defs>|\n\s*", lambda found: " " * (found[0][0] == "\n"), source)
    source = re.sub(r"> +<", "><", source)
    head = f'<svg role="img" aria-label="{escape(alternative)}" '
    return Markup(head + source[len("<svg ") :].strip())


def _shorter(tag: str) -> str:
    """A tag without the words that say nothing, its numbers to a tenth of a point."""
    tag = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", tag)
    tag = re.sub(r"font-family: [^;\"]*; ", "", tag)
    tag = re.sub(r' transform="rotate\(-?0 [^"]*"', "", tag)
    tag = re.sub(r' fill="(var[^"]*)"', r' style="fill: \1"', tag)  # no attribute knows variables
    if tag.startswith("<svg"):
        tag = re.sub(r' (width|height|version|xmlns|xmlns:xlink)="[^"]*"', "", tag)
    tag = re.sub(r"-?\d+\.\d{2,}", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), tag)
    return re.sub(r"([:;]) |\s+(?=[LMCz]\b| |\")", r"\1", tag).replace('" style=""', '"')
