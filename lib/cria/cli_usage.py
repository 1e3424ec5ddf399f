"""What the commands of `cria` share: how words are understood, and how it is said."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


class UsageError(ValueError):
    """The command was not understood: exit code 2."""


def config_of(profile: str):
    """The config of a profile or a YAML file; UsageError if there is none."""
    from cria import config

    return understood(config.load, profile)


def understood(function: Callable, *arguments: object):
    """Call a function for which a ValueError means that a name was mistyped."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def whole(text: str) -> int:
    """For argparse: a whole number, not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def several(text: str) -> list[int]:
    """For argparse: "0-4", "3" or "0,2,5-7", as whole numbers, each once."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            begin, end = whole(first), whole(last) if dash else whole(first)
        except argparse.ArgumentTypeError:
            begin, end = 1, 0
        if end < begin:
            raise argparse.ArgumentTypeError(f"{text} is not like 0-4 or 0,2,5")
        found.update(range(begin, end + 1))
    return sorted(found)


def number(text: str) -> float:
    """For argparse: any number."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None


def aside(line: str) -> None:
    """Tell people, where standard output is for the answer alone."""
    print(line, file=sys.stderr)


def count(n: int, what: str) -> str:
    """1 notebook, 2 notebooks."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def near(path: Path) -> Path:
    """A path as seen from here, where that is shorter."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path
