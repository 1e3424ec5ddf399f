"""The paper says, we saw: the findings as text, as HTML and as Markdown."""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cria.claims import in_seeds
from cria.intervals import Interval

if TYPE_CHECKING:
    import pandas

    from cria.claims import Row, Seen

BEGIN = "<!-- findings: written by `cria findings --readme`, do not edit -->"
END = "<!-- findings: end -->"


# What this run alone says of a claim, and how the last lines put it.
THIS_RUN = {
    "shown": "shown in this run",
    "not shown": "not shown in this run",
    "not measured": "not measured",
}


@dataclass(frozen=True)
class Scoreboard:
    """Rows of the ledger that show themselves in a terminal and in a notebook."""

    rows: tuple[Row, ...]

    def __repr__(self) -> str:
        return text(self.rows)

    def _repr_html_(self) -> str:
        return table_html(self.rows)

    def frame(self) -> pandas.DataFrame:
        """One line a measure, as a data frame."""
        import pandas

        lines = [line for row in self.rows for line in plain(row)]
        return pandas.json_normalize(lines)  # recorded.course.mean, …


def plain(row: Row) -> list[dict]:
    """One dict a measure, as JSON can hold it."""
    return [
        {
            "finding": row.claim.id,
            "says": row.claim.says,
            "paper": row.claim.paper,
            "measure": s.measure.name,
            "what": s.measure.what,
            "unit": s.measure.unit,
            "expect": s.measure.expect,
            "this_run": s.value,
            "profile": row.run.profile if row.run else None,
            "seed": row.run.seed if row.run else None,
            "changed_settings": row.run.changed if row.run else None,
            "recorded": {
                profile: {"mean": i.mean, "half_95": i.half, "seeds": i.n}
                for profile, i in s.recorded.items()
            },
            "verdicts": list(row.verdicts),
        }
        for s in row.seen
    ]


def text(rows: Sequence[Row], width: int = 88, measured_only: bool = False) -> str:
    """The scoreboard for a terminal, and last lines that count the verdicts.

    measured_only: leave out the claims of which nothing at all was seen.
    """
    lines = []
    for row in rows:
        if measured_only and not any(
            s.recorded or s.value is not None for s in row.seen
        ):
            continue
        lines += _wrap(f"{row.claim.id:>2}  ", f"{row.claim.says}", width)
        lines += _wrap("    paper: ", row.claim.paper, width)
        for s in row.seen:
            what = f"{s.measure.what} [{s.measure.unit}, expected {s.measure.expect}]"
            lines += _wrap("    ours:  ", what, width)
            lines += _wrap("           ", _saw(row, s), width)
        lines += [f"    {verdict}" for verdict in marked(row)]
        if row.missed and (reason := why(row)):
            lines += _wrap("    why?   ", reason, width)
        lines.append("")
    return "\n".join([*lines, summary(rows)])


def summary(rows: Sequence[Row]) -> str:
    """How many claims are shown, not shown and not measured: a line a profile."""
    lines = []
    for name in dict.fromkeys(name for row in rows for name in row.profiles):
        shown = [row.shows(name) for row in rows if name in row.profiles]
        lines.append(f"{name}: {shown.count(True)} shown, {shown.count(False)} not.")
    left = [row.verdicts[0].split(" (")[0] for row in rows if not row.profiles]
    for kind, what in THIS_RUN.items():
        if n := left.count(kind):
            lines.append(f"{what}: {n}.")
    return "\n".join(lines)


def table_html(rows: Sequence[Row]) -> str:
    """The scoreboard as a plain HTML table: one line a measure."""
    heads = ("", "the paper says", "we measure", "this run", "recorded", "verdict")
    out = ["<table>", "<tr>" + "".join(f"<th>{h}</th>" for h in heads) + "</tr>"]
    left = "style='text-align: left'"
    for row in rows:
        span = f"rowspan='{len(row.seen)}'"
        said = f"{html.escape(row.claim.says)}<br><i>{html.escape(row.claim.paper)}</i>"
        verdict = "<br>".join(map(html.escape, marked(row)))
        for i, s in enumerate(row.seen):
            what = f"{s.measure.what} [{s.measure.unit}], expected {s.measure.expect}"
            cells = [f"<td {left}>{html.escape(what)}</td>"]
            cells += [f"<td>{html.escape(_run(row, s))}</td>"]
            cells += [f"<td>{'<br>'.join(map(html.escape, _recorded(s)))}</td>"]
            if i == 0:
                first = f"<td {span}>{row.claim.id}</td><td {span} {left}>{said}</td>"
                cells = [first, *cells, f"<td {span}>{verdict}</td>"]
            out.append("<tr>" + "".join(cells) + "</tr>")
    return "\n".join([*out, "</table>"])


def markdown(rows: Sequence[Row]) -> str:
    """The README's block, markers included: recorded seeds only."""
    lines = [BEGIN, "| | the paper says | we measured | verdict |", "|--:|---|---|---|"]
    for row in rows:
        saw = "<br>".join(
            f"{s.measure.what}: {_by_profile(s)} {s.measure.unit}"
            for s in row.seen
            if s.recorded
        )
        cells = [f"{row.claim.id}", row.claim.says, saw or "–"]
        cells += ["<br>".join(marked(row))]
        lines.append("| " + " | ".join(c.replace("|", "\\|") for c in cells) + " |")
    return "\n".join([*lines, END])


def not_shown(rows: Sequence[Row]) -> str:
    """What was measured and did not show, and what we think why, as Markdown.

    Each measure stands with what was seen of it; what keeps to the claim is ticked, so
    that one sees which part of a claim it is that fails, and in which profile. Claims
    that one profile shows and another does not are only listed, at the end.
    """
    parts, listed = [], {}
    for row in rows:
        if not row.missed:
            continue
        if where := divided(row):
            listed.setdefault(where, []).append(str(row.claim.id))
            continue
        verdict = "; ".join(row.verdicts)  # capitalize() would change a profile's name
        verdict = verdict[0].upper() + verdict[1:]
        lines = [f"**{row.claim.id}. {row.claim.says}** {verdict}.", ""]
        for s in row.seen:
            value = f"{mark(s.holds)} {number(s.value)}" if not row.profiles else ""
            value = value or ", ".join(
                f"{mark(s.keeps(name))} {interval(s.recorded[name])}"
                + (f" ({name})" if len(row.profiles) > 1 else "")
                for name in row.profiles
            )
            unit, expected = s.measure.unit, s.measure.expect
            lines.append(f"- {s.measure.what}: {value} {unit}, expected {expected}")
        reason = why(row) or "What we think why has not been written down yet."
        parts.append("\n".join([*lines, "", reason]))
    parts += [
        f"**{where}:** {', '.join(ids)}. The scoreboard says which measure misses."
        for where, ids in listed.items()
    ]
    return "\n\n".join(parts) or "Every finding that was measured shows."


def why(row: Row) -> str:
    """What was tried, and which profile shows it after all; empty if not written."""
    where = divided(row)
    return " ".join(filter(None, [row.claim.tried, where and f"{where}."]))


def divided(row: Row) -> str:
    """ "Shown in course, not in deep (3 seeds)"; empty where the profiles agree."""
    shown = [name for name in row.profiles if row.shows(name)]
    others = [
        f"{name} ({in_seeds(row.seeds(name))})"
        for name in row.profiles
        if name not in shown
    ]
    both = shown and others
    return f"Shown in {', '.join(shown)}, not in {', '.join(others)}" if both else ""


def interval(recorded: Interval) -> str:
    """+0.31 ± 0.04, or +0.31 alone for one seed."""
    if recorded.n == 1:
        return number(recorded.mean)
    return f"{number(recorded.mean)} ± {number(recorded.half).lstrip('+')}"


def number(value: float) -> str:
    """With a sign, and two decimals or two digits."""
    text = f"{value:+.2f}" if 0.1 <= abs(value) < 100 else f"{value:+.2g}"
    return "0" if value == 0 else text.replace("-", "−")


def marked(row: Row) -> list[str]:
    """The verdicts, each with a mark that needs no colour."""
    marks = {"shown": "✓", "not shown": "✗"}
    return [f"{marks.get(v.split(' (')[0], '·')} {v}" for v in row.verdicts]


def mark(holds: bool | None) -> str:
    """✓ or ✗."""
    return "✓" if holds else "✗"


def _saw(row: Row, s: Seen) -> str:
    return f"this run {_run(row, s)}; recorded {', '.join(_recorded(s))}"


def _run(row: Row, s: Seen) -> str:
    if s.value is None or row.run is None:
        return "–"
    changed = ", settings changed" if row.run.changed else ""
    where = f"({row.run.profile}, seed {row.run.seed}{changed})"
    if row.run.profile == "smoke":
        return f"{number(s.value)} {where}"
    return f"{number(s.value)} {mark(s.holds)} {where}"


def _recorded(s: Seen) -> list[str]:
    return [
        f"{interval(i)} ({name}, {in_seeds(i.n)})" for name, i in s.recorded.items()
    ] or ["–"]


def _by_profile(s: Seen) -> str:
    """The recorded values, with the names of their profiles where there are several."""
    several = len(s.recorded) > 1
    return ", ".join(
        f"{name} {interval(i)}" if several else interval(i)
        for name, i in s.recorded.items()
    )


def _wrap(first: str, rest: str, width: int) -> list[str]:
    return textwrap.wrap(
        rest, width, initial_indent=first, subsequent_indent=" " * len(first)
    )
