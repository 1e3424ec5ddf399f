"""How long notebooks take when all their stages are there.

data/notebook_seconds.json holds it; `cria execute` renews it. The stamp of a notebook
says how long its last run took, which may have shared the machine.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from cria import notebooks, stages
from cria.provenance import write_json


def path() -> Path:
    """Where the seconds are kept."""
    return stages.ROOT / "data" / "notebook_seconds.json"


def read(paths: Iterable[Path]) -> dict[str, float]:
    """Seconds by name; of a notebook that the file lacks, what its stamp says."""
    kept, known = _kept(), {}
    for notebook in paths:
        stamp = notebooks.read(notebook).metadata.get("cria", {})
        seconds = kept.get(notebook.stem, {}).get("seconds", stamp.get("seconds"))
        if seconds is not None:
            known[notebook.stem] = float(seconds)
    return known


def renew(notebook: Path, seconds: float) -> None:
    """Keep the shortest run of the code that the notebook has today."""
    kept, code = _kept(), notebooks.code_digest(notebooks.read(notebook))[:16]
    old = kept.get(notebook.stem, {})
    if old.get("code") == code:
        seconds = min(seconds, old["seconds"])
    kept[notebook.stem] = {"seconds": round(seconds, 1), "code": code}
    write_json(path(), dict(sorted(kept.items())))


def _kept() -> dict[str, dict]:
    try:
        kept = json.loads(path().read_text("utf-8"))
        return {name: kept[name] for name in kept if kept[name]["seconds"] > 0}
    except (OSError, ValueError, TypeError, KeyError):
        return {}  # it only guesses times: never a reason to stop
