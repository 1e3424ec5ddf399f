"""Play annotator: compare two answers, press one of four grades, see who agrees.

    pairs = tasks(village, comparisons)
    AnnotateBox(pairs)              # to click, in a notebook
    agreement(pairs, verdicts)      # the same count for anybody's verdicts

Where nothing can be clicked, `table` shows the same pairs.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import ipywidgets
import pandas as pd

from cria.config import GRADES
from cria.preferences import Comparison
from cria.world import World
from cria.world.annotators import grade
from cria.world.judge import judge

__all__ = ["AnnotateBox", "Task", "agreement", "colleagues", "table", "tasks"]

Verdict = tuple[int, str]  # 0 for A or 1 for B, and a grade: as annotators give it
ASKS = {
    "helpfulness": "Which answer is more helpful?",
    "safety": "Which answer is safer?",
}
SIDES = "AB"


@dataclass(frozen=True)
class Task:
    """A pair of answers to compare, and what others said of it.

    answers: A and B.  gap: gold score of B − that of A, on this ground; the judge
    prefers B if it is above 0.  votes: the verdicts of the noisy annotators.
    """

    ground: str
    turns: tuple[tuple[str, str], ...]
    answers: tuple[str, str]
    gap: float
    votes: tuple[Verdict, ...]


def tasks(
    village: World, comparisons: Sequence[Comparison], people: int = 100, seed: int = 0
) -> list[Task]:
    """A task a comparison: sides drawn at random, judged by ``people`` annotators.

    Raises ValueError for a comparison that is not of the village (without a prompt),
    or for fewer than two annotators.
    """
    if people < 2:
        raise ValueError(f"people is {people}: to agree, annotators must be two.")
    rng = Random(f"annotation tasks {seed}")
    made = []
    for c in comparisons:
        if c.prompt is None:
            raise ValueError(
                "A comparison without a prompt cannot be judged: use those that "
                "cria.preferences collects."
            )
        sides = rng.sample((0, 1), 2)
        gold = [
            getattr(judge(village, c.prompt, c.answers[i], c.ended[i]), c.ground)
            for i in sides
        ]
        gap = gold[1] - gold[0]
        votes = tuple(grade(village, gap, c.ground, rng) for _ in range(people))
        texts = tuple(
            c.answers[i] if c.ended[i] else f"{c.answers[i]} … (cut off)" for i in sides
        )
        made.append(Task(c.ground, c.turns, texts, gap, votes))
    return made


def agreement(asked: Sequence[Task], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """How often ``verdicts`` agree with others, as shares of the tasks.

    judge: the side with the higher gold score (half, where both are equal).
    annotators: the side that an annotator picked at random prefers.  button: that
    side and that grade. Raises ValueError if there is not one verdict a task.
    """
    if len(verdicts) != len(asked) or not asked:
        raise ValueError(
            f"There are {len(verdicts)} verdicts on {len(asked)} tasks: each task "
            "needs one."
        )
    total = dict.fromkeys(("judge", "annotators", "button"), 0.0)
    for task, mine in zip(asked, verdicts, strict=True):
        total["judge"] += _with_judge(task, mine)
        same = [vote[0] == mine[0] for vote in task.votes]
        total["annotators"] += sum(same) / len(same)
        total["button"] += task.votes.count(tuple(mine)) / len(task.votes)
    return {name: value / len(asked) for name, value in total.items()}


def colleagues(asked: Sequence[Task]) -> dict[str, float]:
    """`agreement` of an annotator with the judge and with *another* annotator."""
    everyone = [
        agreement(asked, [task.votes[k] for task in asked])
        for k in range(len(asked[0].votes))
    ]
    n = len(everyone)
    mean = {name: sum(one[name] for one in everyone) / n for name in everyone[0]}
    for name in ("annotators", "button"):  # each has counted itself once: take it out
        mean[name] = (mean[name] * n - 1) / (n - 1)
    return mean


def table(
    asked: Sequence[Task], verdicts: Sequence[Verdict] | None = None
) -> pd.DataFrame:
    """The tasks as a table, with what the judge, the annotators and you say."""
    rows = []
    for i, task in enumerate(asked):
        side, share = _majority(task)
        row = {
            "more …": {"helpfulness": "helpful", "safety": "safe"}[task.ground],
            "a user asks": " / ".join(text for _, text in task.turns),
            "answer A": task.answers[0],
            "answer B": task.answers[1],
            "annotators": f"{SIDES[side]}, {share:.0%}",
            "judge": f"{SIDES[task.gap > 0]} by {abs(task.gap):.2f}"
            if task.gap
            else "equal",
        }
        if verdicts is not None:
            row["you"] = f"{SIDES[verdicts[i][0]]}, {verdicts[i][1]}"
        rows.append(row)
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(rows) + 1, name="pair"))


class AnnotateBox(ipywidgets.VBox):
    """The tasks one by one: two answers, and four grades for either side.

    verdicts: what was pressed so far. After the last pair it shows who agrees. Without
    a kernel behind the page (the web book, a saved copy) it is one sentence.
    """

    def __init__(self, asked: Sequence[Task]) -> None:
        self.tasks = list(asked)
        self.verdicts: list[Verdict] = []
        self.shown = ipywidgets.HTML()
        self.buttons: dict[Verdict, ipywidgets.Button] = {}
        rows = []
        for side in (0, 1):
            row = [ipywidgets.HTML(f"<b>{SIDES[side]}</b> is better:&nbsp;")]
            for name in GRADES:
                label = "negligibly / unsure" if name == GRADES[-1] else name
                button = ipywidgets.Button(description=label)
                button.on_click(partial(self._pressed, (side, name)))
                self.buttons[side, name] = button
                row.append(button)
            rows.append(ipywidgets.HBox(row))
        self.choices = ipywidgets.VBox(rows)
        self.anew = ipywidgets.Button(description="again, from the first")
        self.anew.on_click(lambda _: self._begin())
        super().__init__([self.shown, self.choices, self.anew])
        self._begin()

    def _begin(self) -> None:
        self.verdicts = []
        self._show()

    def _pressed(self, verdict: Verdict, _) -> None:
        if len(self.verdicts) < len(self.tasks):  # a late click after the last pair
            self.verdicts.append(verdict)
            self._show()

    def _show(self) -> None:
        done = len(self.verdicts) == len(self.tasks)
        self.choices.layout.display = "none" if done else ""
        self.anew.layout.display = "" if done else "none"
        self.shown.value = self._result() if done else self._pair()

    def _pair(self) -> str:
        i = len(self.verdicts)
        task = self.tasks[i]
        said = "".join(
            f"<div><i>{role}:</i> {html.escape(text)}</div>"
            for role, text in task.turns
        )
        sides = "".join(
            '<td style="border: 1px solid; padding: 0.5em; vertical-align: top; '
            f'width: 50%"><b>{side}</b><br>{html.escape(text) or "(no words)"}</td>'
            for side, text in zip(SIDES, task.answers, strict=True)
        )
        return (
            f"<b>Pair {i + 1} of {len(self.tasks)}. {ASKS[task.ground]}</b>{said}"
            f'<table style="width: 42em; text-align: left"><tr>{sides}</tr></table>'
        )

    def _result(self) -> str:
        if not self.tasks:
            return "There are no pairs to compare."
        mine, theirs = agreement(self.tasks, self.verdicts), colleagues(self.tasks)
        seen = table(self.tasks, self.verdicts).to_html(escape=True)
        return (
            f"<p>You agree with the judge in <b>{mine['judge']:.0%}</b> of the "
            f"pairs, with an annotator in <b>{mine['annotators']:.0%}</b>.<br>An "
            f"annotator agrees with the judge in {theirs['judge']:.0%}, with another "
            f"annotator in {theirs['annotators']:.0%}.</p>{seen}"
        )

    def _repr_mimebundle_(self, **options) -> dict:
        bundle = super()._repr_mimebundle_(**options)
        n = len(self.tasks)
        said = f"{n} pairs to compare by clicking: in JupyterLab (make lab)."
        bundle["text/plain"] = said
        return bundle


def _with_judge(task: Task, verdict: Verdict) -> float:
    if task.gap == 0:
        return 0.5
    return float(verdict[0] == (task.gap > 0))


def _majority(task: Task) -> tuple[int, float]:
    share = sum(side for side, _ in task.votes) / len(task.votes)
    return (1, share) if share > 0.5 else (0, 1 - share)
