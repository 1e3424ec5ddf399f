"""The road from texts to Llama 2-Chat, as a picture: the steps and what feeds what."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyBboxPatch

from cria import plots


@dataclass(frozen=True)
class Step:
    """A box: what it makes, the paper's section, the notebook, its column and row."""

    name: str
    makes: str
    section: str
    notebook: str  # two digits: "03"
    at: tuple[int, int]


ROAD = (
    Step("tokenizer", "text → numbers", "2.2", "01", (0, 0)),
    Step("model blocks", "an empty Llama", "2.2", "02", (1, 0)),
    Step("pre-training", "a base model", "2", "03", (2, 0)),
    Step("fine-tuning", "a first chat model", "3.1", "04", (3, 0)),
    Step("preferences", "which answer is better", "3.2.1", "05", (0, 1)),
    Step("reward models", "helpfulness and safety", "3.2.2", "06", (1, 1)),
    Step("best of N", "sample, score, keep", "3.2.3", "07", (2, 1)),
    Step("rejection sampling", "chat models V1 to V4", "3.2.3", "08", (3, 1)),
    Step("full scale", "7B to 70B, on paper", "2.2", "12", (0, 2)),
    Step("evaluation", "how good, how safe?", "3.4, 4", "11", (1, 2)),
    Step("PPO", "chat model V5", "3.2.3", "09", (2, 2)),
    Step("Ghost Attention", "holds an instruction", "3.3", "10", (3, 2)),
)

FEEDS = (
    ("tokenizer", "model blocks"),
    ("model blocks", "pre-training"),
    ("pre-training", "fine-tuning"),
    ("fine-tuning", "preferences"),
    ("preferences", "reward models"),
    ("reward models", "best of N"),
    ("best of N", "rejection sampling"),
    ("rejection sampling", "preferences"),  # the newest model's answers, every round
    ("rejection sampling", "PPO"),
    ("rejection sampling", "Ghost Attention"),
    ("PPO", "evaluation"),
)
WIDTH, HEIGHT, GAP = 1.18, 0.62, (1.38, 1.0)  # of a box; from one to the next
LINE = {"color": "black", "lw": 1.2}


def draw(
    written: Collection[str],
    ax: Axes | None = None,
    steps: Sequence[Step] = ROAD,
    feeds: Sequence[tuple[str, str]] = FEEDS,
) -> Axes:
    """The road; filled boxes have a notebook in `written` ("03"), the others wait."""
    if ax is None:
        _, ax = plt.subplots(figsize=(8.6, 4.2))
    middle = {s.name: (s.at[0] * GAP[0], -s.at[1] * GAP[1]) for s in steps}
    for start, end in feeds:
        _arrow(ax, middle[start], middle[end])
    for step in steps:
        _box(ax, step, middle[step.name], step.notebook in written)
    around = (1.5 * GAP[0], -0.5 * GAP[1] + 0.03)
    ax.text(*around, "the newest model's answers are compared", fontsize=8, ha="center")
    ax.set_aspect("equal")
    ax.autoscale_view()
    ax.axis("off")
    return ax


def _box(ax: Axes, step: Step, middle: tuple[float, float], written: bool) -> None:
    x, y = middle
    box = FancyBboxPatch(
        (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
        boxstyle="round,pad=0,rounding_size=0.08",
        fc="#DCEBF5" if written else "white",
        ec=plots.BLUE if written else plots.GREY,
        ls="-" if written else "--", lw=1.4,
    )  # fmt: skip
    ax.add_patch(box)
    where = f"notebook {step.notebook} · §{step.section}"
    lines = ((step.name, 0.17, 10, "bold"), (step.makes, 0, 8.5, "normal"))
    for text, up, size, weight in (*lines, (where, -0.17, 7.5, "normal")):
        ax.text(x, y + up, text, ha="center", va="center", fontsize=size, weight=weight)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    """To the neighbour straight; otherwise along the gap above the end's row."""
    (x0, y0), (x1, y1) = start, end
    if y0 == y1 and abs(x1 - x0) < 1.5 * GAP[0]:
        side = WIDTH / 2 if x1 > x0 else -WIDTH / 2
        tail, head = (x0 + side, y0), (x1 - side, y1)
    else:
        edge = y0 + HEIGHT / 2 if y0 == y1 else y0 - HEIGHT / 2
        gap = y1 + GAP[1] / 2
        ax.plot([x0, x0, x1], [edge, gap, gap], solid_joinstyle="miter", **LINE)
        tail, head = (x1, gap), (x1, y1 + HEIGHT / 2)
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **LINE}
    ax.annotate("", head, tail, arrowprops=arrow)
