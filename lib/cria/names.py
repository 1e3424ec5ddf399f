"""Small words for people: the nearest name to a mistyped one, and durations."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """One sentence for a name that does not exist, with the nearest that does."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(str(given), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    listed = f"There are: {', '.join(known)}." if known else "There are none yet."
    return f"there is no {what} {given}: {hint}{listed}"


def duration(seconds: float) -> str:
    """0.4 s, 12 s, 3 min 05 s, 1 h 02 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"
