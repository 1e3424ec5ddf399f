"""Look into a pool of samples: what the best of N is, and what it was chosen from.

    PoolBox(pool)                          # to click, in a notebook
    draw(pool, 1.0, p=0, N=8)              # the same draw as a table
    picks(pool, 1.0, N=8)                  # one prompt of every kind

The draws are nested: the first N of the M samples, so that a larger N adds answers to
those that are there already.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

import ipywidgets
import pandas as pd
from torch import Tensor

from cria.best_of_n import expected_best
from cria.sample_pool import SamplePool

__all__ = ["JUDGES", "PoolBox", "draw", "picks"]

JUDGES = {
    "R_c, the reward": "combined",
    "plain RM": "plain",
    "log-prob alone": "logprob",
    "oracle (the judge)": "gold",
}
ALL = "all kinds"


def draw(
    pool: SamplePool, temperature: float, p: int, N: int, by: str = "combined"
) -> pd.DataFrame:
    """The first N samples of prompt p: one row a different answer, the best first.

    Columns: answer, times, score (of the judge ``by``), helpfulness, safety (the gold
    judge's). Raises ValueError for more samples than there are.
    """
    t, M = pool.index(temperature), pool.answer.shape[2]
    if not 1 <= N <= M:
        raise ValueError(f"N is {N}, but there are {M} samples a prompt.")
    score = _score(pool, by)
    rows: dict[int, dict] = {}
    for m in range(N):
        row = rows.setdefault(
            int(pool.answer[t, p, m]),
            {
                "answer": _shown(pool, t, p, m),
                "times": 0,
                "score": float(score[t, p, m]),
                "helpfulness": float(pool.gold_helpfulness[t, p, m]),
                "safety": float(pool.gold_safety[t, p, m]),
            },
        )
        row["times"] += 1
    # Stable: of equal scores the one that came first wins.
    ranked = sorted(rows.values(), key=lambda row: -row["score"])
    return pd.DataFrame(ranked, index=pd.RangeIndex(1, len(ranked) + 1, name="rank"))


def picks(
    pool: SamplePool,
    temperature: float,
    N: int,
    by: str = "combined",
    prompts: Sequence[int] | None = None,
) -> pd.DataFrame:
    """What is picked, and the worst that was passed over, for some of the prompts.

    prompts: their numbers; without it, the first one of every kind.
    """
    if prompts is None:
        kinds = [prompt.kind for prompt in pool.prompts]
        prompts = [kinds.index(kind) for kind in pool.kinds]
    rows = []
    for p in prompts:
        found = draw(pool, temperature, p, N, by)
        best, worst = found.iloc[0], found.iloc[-1]
        rows.append(
            {
                "kind": pool.prompts[p].kind,
                "a user asks": pool.prompts[p].question,
                f"best of {N}": best["answer"],
                "helpful": best["helpfulness"],
                "safe": best["safety"],
                "different": len(found),
                "the lowest": worst["answer"],
                "helpful ": worst["helpfulness"],
                "safe ": worst["safety"],
            }
        )
    return pd.DataFrame(rows)


class PoolBox(ipywidgets.VBox):
    """Choose a temperature, N, a judge and a kind of prompt; turn the pages.

    Without a kernel behind the page (the web book, a saved copy) it is one sentence.
    """

    def __init__(self, pool: SamplePool, temperature: float = 1.0, N: int = 8) -> None:
        self.pool = pool
        pool.index(temperature)  # a wrong one is told here, not in a silent callback
        M = pool.answer.shape[2]
        wide = {"description_width": "6.5em"}
        self.temperature = ipywidgets.SelectionSlider(
            options=[(f"{t:g}", t) for t in pool.temperatures],
            value=temperature,
            description="temperature",
            style=wide,
        )
        self.N = ipywidgets.IntSlider(
            min(N, M), min=1, max=M, description="N", style=wide
        )
        self.judge = ipywidgets.Dropdown(
            options=list(JUDGES.items()), description="chosen by", style=wide
        )
        self.kind = ipywidgets.Dropdown(
            options=[ALL, *pool.kinds], description="prompts", style=wide
        )
        self.page = ipywidgets.IntSlider(0, min=0, description="which", style=wide)
        self.shown = ipywidgets.HTML()
        self.kind.observe(lambda _: self._turn(), names="value")
        for part in (self.temperature, self.N, self.judge, self.page):
            part.observe(lambda _: self._show(), names="value")
        super().__init__(
            [
                ipywidgets.HBox([self.temperature, self.N]),
                ipywidgets.HBox([self.kind, self.page]),
                self.judge,
                self.shown,
            ]
        )
        self._turn()

    @property
    def part(self) -> SamplePool:
        """The pool, or the part of it with prompts of the chosen kind."""
        all_of_it = self.kind.value == ALL
        return self.pool if all_of_it else self.pool.of(self.kind.value)

    def _turn(self) -> None:
        """Another kind: to its first prompt."""
        self.page.value = 0
        self.page.max = len(self.part.prompts) - 1
        self._show()

    def _show(self) -> None:
        part, N, by = self.part, self.N.value, self.judge.value
        temperature, p = self.temperature.value, self.page.value
        prompt = part.prompts[p]
        found = draw(part, temperature, p, N, by)
        said = "".join(
            f"<div><i>{role}:</i> {html.escape(text)}</div>"
            for role, text in prompt.turns
        )
        cells = "".join(
            "<tr{}><td>{}</td><td>{}×</td><td>{:.2f}</td><td>{:.2f}</td>"
            "<td>{:.2f}</td></tr>".format(
                ' style="font-weight: bold"' if rank == 1 else "",
                html.escape(row["answer"]) or "(no words)",
                row["times"],
                row["score"],
                row["helpfulness"],
                row["safety"],
            )
            for rank, row in found.iterrows()
        )
        heads = "".join(
            f"<th>{name}</th>"
            for name in ("answer", "times", "score", "gold helpful", "gold safe")
        )
        self.shown.value = (
            f"<b>{html.escape(prompt.kind)}</b>{said}"
            f'<table style="width: 46em; text-align: left"><tr>{heads}</tr>{cells}'
            f"</table><p>{self._means(part, temperature, N, by)}</p>"
        )

    def _means(self, part: SamplePool, temperature: float, N: int, by: str) -> str:
        """Over all prompts that are chosen, and over all draws of N."""
        t = part.index(temperature)
        score, words = _score(part, by)[t], []
        for name in ("helpfulness", "safety"):
            value = getattr(part, f"gold_{name}")[t]
            one, best = (float(expected_best(score, value, n).mean()) for n in (1, N))
            words.append(f"gold {name} {one:.2f} → {best:.2f}")
        n = len(part.prompts)
        prompts = "this prompt" if n == 1 else f"the {n} prompts"
        return f"Best of {N} against one answer, mean of {prompts}: " + ", ".join(words)

    def _repr_mimebundle_(self, **options) -> dict:
        bundle = super()._repr_mimebundle_(**options)
        n = f"{self.pool.answer.numel():,}"
        said = f"{n} answers to look through by clicking: in JupyterLab (make lab)."
        bundle["text/plain"] = said
        return bundle


def _score(pool: SamplePool, by: str) -> Tensor:
    if by not in JUDGES.values():
        raise ValueError(
            f"there is no judge {by!r}; there are {', '.join(JUDGES.values())}."
        )
    return getattr(pool, by)


def _shown(pool: SamplePool, t: int, p: int, m: int) -> str:
    cut = "" if bool(pool.finished[t, p, m]) else " … (cut off)"
    return pool.text(t, p, m) + cut
