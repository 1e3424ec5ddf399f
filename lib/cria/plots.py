"""Pictures in one style: readable at the width of a notebook, without colour too.

Every helper draws on `ax` (a new one if None) and returns it, so that a notebook can
add to it. Labels name the quantity and its unit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from cria.intervals import Interval

# Okabe and Ito's palette: told apart with every common kind of colour blindness.
BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#7F7F7F"
PALETTE = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW)
DASHES = ("-", "--", "-.", ":")  # so that lines differ in print as well

Points = tuple[Sequence[float], Sequence[float]]


def use_style() -> None:
    """Set the course's style for all plots that follow."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.0, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.prop_cycle": plt.cycler(color=PALETTE),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlesize": 11,
            "axes.titlelocation": "left",
            "grid.color": "#E3E3E3",
            "grid.linewidth": 0.6,
            "font.size": 10,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "svg.hashsalt": "cria",  # the same plot gives the same file
        }
    )


def curves(
    series: Mapping[str, Points],
    xlabel: str,
    ylabel: str,
    ax: Axes | None = None,
    smooth: int = 1,
    title: str = "",
) -> Axes:
    """Lines by name, each (x, y). `smooth` > 1: a running mean over so many points,
    with the raw values pale behind it."""
    ax = ax or _new()
    for i, (name, (x, y)) in enumerate(series.items()):
        color, dash = PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]
        if smooth > 1:
            ax.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
            y = running_mean(y, smooth)
        ax.plot(x, y, dash, color=color, label=name)
    return _finish(ax, xlabel, ylabel, title, legend=len(series) > 1)


def bars(
    values: Mapping[str, float | Interval],
    ylabel: str,
    ax: Axes | None = None,
    paper: Mapping[str, float] | None = None,
    title: str = "",
) -> Axes:
    """A bar a name, with its 95 % interval where it has one, and its value on top.

    paper: the paper's numbers for some of the names, drawn as diamonds.
    """
    ax = ax or _new()
    for i, (name, value) in enumerate(values.items()):
        if not isinstance(value, Interval):
            value = Interval(value, 0.0, 1)
        error = value.half if value.n > 1 else None
        ax.bar(
            i, value.mean, 0.65, color=PALETTE[i % len(PALETTE)], yerr=error, capsize=4
        )
        top = value.high if value.mean >= 0 else value.low
        ax.annotate(
            f"{value.mean:.3g}",
            (i, top),
            (0, 3 if value.mean >= 0 else -3),
            textcoords="offset points",
            ha="center",
            va="bottom" if value.mean >= 0 else "top",
            fontsize=9,
        )
        if paper and name in paper:
            first = name == next(n for n in values if n in paper)
            label = "paper" if first else None
            ax.plot(i, paper[name], "D", color="black", label=label, zorder=3)
    ax.set_xticks(range(len(values)), list(values))
    ax.grid(axis="x", visible=False)
    ax.axhline(0, color="black", linewidth=0.8)
    return _finish(ax, "", ylabel, title, legend=bool(paper))


def mask_picture(
    pieces: Sequence[str],
    loss_mask: Sequence[bool],
    doc_ids: Sequence[int] | None = None,
    ax: Axes | None = None,
    columns: int = 72,
    title: str = "",
) -> Axes:
    """Tokens as boxes: filled where the loss counts, outlined by document.

    pieces, loss_mask, doc_ids: T entries each; a negative document is padding.
    columns: characters in a row of the picture.
    """
    doc_ids = [0] * len(pieces) if doc_ids is None else list(doc_ids)
    if not len(pieces) == len(loss_mask) == len(doc_ids):
        raise ValueError(
            f"there are {len(pieces)} pieces, {len(loss_mask)} mask entries and "
            f"{len(doc_ids)} document ids; each token needs one of each."
        )
    boxes = _boxes([piece.replace("\n", "↵") for piece in pieces], columns)
    rows = 1 + (boxes[-1][1] if boxes else 0)
    if ax is None:
        _, ax = plt.subplots(figsize=(7.0, 0.4 + 0.3 * rows))
    named: set[str] = set()
    for (x, row, width, text), counts, doc in zip(
        boxes, loss_mask, doc_ids, strict=True
    ):
        kind = "padding" if doc < 0 else "loss counts" if counts else "no loss"
        face = {"padding": "#EEEEEE", "loss counts": YELLOW, "no loss": "white"}[kind]
        edge = GREY if doc < 0 else PALETTE[:6][doc % 6]
        box = Rectangle(
            (x + 0.1, row + 0.1), width - 0.2, 0.8, fc=face, ec=edge, lw=1.2
        )
        if kind not in named:
            box.set_label(kind)
            named.add(kind)
        ax.add_patch(box)
        ax.text(
            x + width / 2, row + 0.5, text, ha="center", va="center", fontsize=7.5,
            family="monospace", parse_math=False,
        )  # fmt: skip
    ax.set(xlim=(0, columns), ylim=(rows, 0))
    ax.axis("off")
    ax.set_title(title)
    ax.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, fontsize=8)
    return ax


def paper_note(ax: Axes, text: str, y: float | None = None) -> Axes:
    """Put the paper's number beside ours: a dashed line at `y`, or a note alone."""
    said = f"paper: {text}"
    if y is None:
        ax.text(0.99, 0.02, said, transform=ax.transAxes, ha="right", fontsize=8.5)
        return ax
    ax.axhline(y, color="black", linewidth=1, linestyle=(0, (4, 3)))
    where = ax.get_yaxis_transform()  # x in the axes' width, y in the data's units
    ax.text(0.99, y, said, transform=where, ha="right", va="bottom", fontsize=8.5)
    return ax


def running_mean(values: Sequence[float], n: int) -> list[float]:
    """The mean of each value and up to n − 1 before it: as long as `values`."""
    out, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - n] if i >= n else 0.0)
        out.append(total / min(i + 1, n))
    return out


def _boxes(pieces: list[str], columns: int) -> list[tuple[int, int, int, str]]:
    """(x, row, width, text) of each piece, row by row."""
    boxes, x, row = [], 0, 0
    for piece in pieces:
        width = min(len(piece) + 1, columns)
        if x + width > columns:
            x, row = 0, row + 1
        boxes.append((x, row, width, piece[: columns - 1]))
        x += width
    return boxes


def _new() -> Axes:
    return plt.subplots()[1]


def _finish(ax: Axes, xlabel: str, ylabel: str, title: str, legend: bool) -> Axes:
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.set_title(title)
    if legend:
        ax.legend()
    return ax
