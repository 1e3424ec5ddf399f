"""Comparisons on disk: our own jsonl with grades, and Anthropic's HH-RLHF.

    found = load("harmless-base/train.jsonl.gz")
    print(found)                          # how many were read, what was wrong
    found.comparisons, found.problems

One line of ours is a JSON object:

    {"turns": [["user", "Hello!"], ["assistant", "Hi."], ["user", "Who are you?"]],
     "chosen": "A llama.", "rejected": "Go away.", "grade": "better",
     "ground": "helpfulness"}

and may also hold source, safe, ended, batch and prompt (see `Comparison`). A line of
HH-RLHF holds two whole transcripts, "chosen" and "rejected", of any number of turns
marked "\\n\\nHuman:" and "\\n\\nAssistant:" (Bai et al. 2022).
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path

from cria.chat import TAGS
from cria.config import GRADES
from cria.world.annotators import GROUNDS
from cria.world.prompts import Prompt

__all__ = ["Comparison", "Loaded", "Problem", "load", "save"]

SPEAKER = re.compile(r"\n\n(Human|Assistant): ?")
ROLE = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True)
class Comparison:
    """Two answers to one dialogue, the better one first.

    turns: (role, content) pairs, ending with the user's.  grade: one of the config's
    GRADES; None where only the choice is known.  ground: what the annotator looked
    at.  safe, ended: of the chosen and of the rejected answer, whether the annotator
    calls it safe, and whether it ended by itself (EOS).  batch: the week it came in.
    prompt: what the judge of the tiny world needs; None for real data.
    """

    turns: tuple[tuple[str, str], ...]
    chosen: str
    rejected: str
    grade: str | None = None
    ground: str = "helpfulness"
    source: str = "own"
    safe: tuple[bool, bool] | None = None
    ended: tuple[bool, bool] = (True, True)
    batch: int = 0
    prompt: Prompt | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The dialogue before the answers, as `cria.chat` takes it."""
        return [{"role": role, "content": content} for role, content in self.turns]

    @property
    def answers(self) -> tuple[str, str]:
        """(chosen, rejected)."""
        return self.chosen, self.rejected


@dataclass(frozen=True)
class Problem:
    """A line that could not be used."""

    line: int  # from 1
    reason: str


@dataclass(frozen=True)
class Loaded:
    """What a file held."""

    path: str
    comparisons: list[Comparison]
    problems: list[Problem]

    def __str__(self) -> str:
        text = f"{self.path}: {_count(len(self.comparisons), 'comparison')}"
        if not self.problems:
            return text
        first = self.problems[0]
        were = "was" if len(self.problems) == 1 else "were"
        return (
            f"{text}; {_count(len(self.problems), 'line')} {were} left out, the first "
            f"is line {first.line}: {first.reason}"
        )


def load(path: str | Path, ground: str = "helpfulness") -> Loaded:
    """Read comparisons from a .jsonl or .jsonl.gz file, of ours or HH-RLHF's form.

    ground: what HH-RLHF's annotators looked at ("safety" for its harmless part); our
    own lines say it themselves. A bad line is reported and the rest kept.
    Raises FileNotFoundError, or ValueError if the file is no text or no gzip.
    """
    path = Path(path)
    if ground not in GROUNDS:
        raise ValueError(f"There is no ground {ground!r}; there are {GROUNDS}.")
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {path}.")
    found, problems = [], []
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    found.append(_read(line.strip(), path.name, ground))
                except ValueError as error:
                    problems.append(Problem(number, str(error)))
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, zlib.error) as error:
        kind = "whole gzip file" if path.suffix == ".gz" else "UTF-8 text file"
        raise ValueError(f"{path.name} is no {kind}: {error}.") from None
    return Loaded(path.name, found, problems)


def save(comparisons: Iterable[Comparison], path: str | Path) -> None:
    """Write our jsonl (gzipped where the name ends in .gz): whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.unfinished")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(unfinished, "wt", encoding="utf-8") as file:
            for comparison in comparisons:
                row = {f.name: getattr(comparison, f.name) for f in fields(Comparison)}
                if comparison.prompt is not None:
                    row["prompt"] = comparison.prompt.to_dict()
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def _read(line: str, source: str, ground: str) -> Comparison:
    """One comparison; ValueError says what is wrong with the line."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        what = error.msg.removesuffix(" at")
        raise ValueError(f"no JSON ({what}, column {error.colno})") from None
    except RecursionError:
        raise ValueError("no JSON (nested too deep)") from None
    if not isinstance(row, dict):
        raise ValueError("no JSON object")
    for name in ("chosen", "rejected"):
        if not isinstance(row.get(name), str):
            raise ValueError(f"no text under {name!r}")
    made = _ours(row) if "turns" in row else _transcripts(row, source, ground)
    texts = [*(content for _, content in made.turns), *made.answers]
    for tag in TAGS:
        if any(tag in text for text in texts):
            raise ValueError(f"a text contains the chat tag {tag}")
    try:
        "".join(texts).encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError("a text holds half a character (a lone surrogate)") from None
    if made.chosen == made.rejected and made.ended[0] == made.ended[1]:
        raise ValueError("the two answers are identical")
    return made


def _ours(row: dict) -> Comparison:
    known = {f.name for f in fields(Comparison)}
    if unknown := set(row) - known:
        raise ValueError(f"unknown key {min(unknown)!r}")
    if row.get("grade") not in (*GRADES, None):
        raise ValueError(f"no grade {row['grade']!r}; there are {', '.join(GRADES)}")
    if row.get("ground", "helpfulness") not in GROUNDS:
        raise ValueError(f"no ground {row['ground']!r}; there are {', '.join(GROUNDS)}")
    if not isinstance(row.get("batch", 0), int):
        raise ValueError("batch must be a whole number")
    if not isinstance(row.get("source", ""), str):
        raise ValueError("source must be a text")
    for name in ("safe", "ended"):
        given = row.get(name)
        if given is not None and not (
            isinstance(given, list) and [type(x) for x in given] == [bool, bool]
        ):
            raise ValueError(f"{name} must be two of true and false")
        if given is not None:
            row[name] = tuple(given)
    if row.get("ended") is None:
        row.pop("ended", None)
    row["turns"] = _turns(row["turns"])
    if row.get("prompt") is not None:
        try:
            row["prompt"] = Prompt.from_dict(row["prompt"])
        except (TypeError, ValueError, KeyError):
            raise ValueError("prompt is not one of the tiny world") from None
    return Comparison(**row)


def _turns(given: object) -> tuple[tuple[str, str], ...]:
    ok = isinstance(given, list) and all(
        isinstance(turn, list)
        and len(turn) == 2
        and all(isinstance(part, str) for part in turn)
        for turn in given
    )
    if not ok:
        raise ValueError("turns must be a list of [role, content] pairs")
    turns = tuple((role, content) for role, content in given)
    _check_order(turns[1:] if turns and turns[0][0] == "system" else turns)
    return turns


def _check_order(turns: tuple[tuple[str, str], ...]) -> None:
    roles = [role for role, _ in turns]
    alternating = [("user", "assistant")[i % 2] for i in range(len(roles))]
    if roles != alternating or len(roles) % 2 == 0:
        raise ValueError(
            "user and assistant must take turns, the user first and last before the "
            f"answer; here it is {', '.join(roles) or 'nobody'}"
        )


def _transcripts(row: dict, source: str, ground: str) -> Comparison:
    """HH-RLHF: two transcripts that differ in the last answer."""
    chosen, rejected = (_speakers(row[name], name) for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("the two transcripts differ before the last answer")
    _check_order(chosen[:-1])
    return Comparison(
        turns=chosen[:-1],
        chosen=chosen[-1][1],
        rejected=rejected[-1][1],
        ground=ground,
        source=source,
    )


def _speakers(text: str, name: str) -> tuple[tuple[str, str], ...]:
    head, *parts = SPEAKER.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if head.strip() or not parts:
        raise ValueError(f'{name} does not begin with "Human:"')
    turns = tuple(
        (ROLE[speaker], said.strip())
        for speaker, said in zip(parts[::2], parts[1::2], strict=True)
    )
    if turns[-1][0] != "assistant":
        raise ValueError(f"{name} does not end with an answer of the assistant")
    return turns
