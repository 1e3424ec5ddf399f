"""One process of `cria.ahead`: builds the stages that it is handed, one by one.

It tells the parent what happens: ("said", a line), ("built",), ("stopped",) or
("failed", error, traceback).
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from cria import crew, stages
from cria.stage_kind import Stage


def work(
    pipe: Connection, config: object, seed: int, cache: Path, table: Mapping[str, Stage]
) -> None:
    """Build every stage whose name comes through the pipe, until it is closed."""

    def build(name: str) -> tuple:
        try:
            stages.get(name, config, seed, cache, table=table)
            return ("built",)
        except Exception as error:
            said = str(error) or type(error).__name__
            if not isinstance(error, ValueError | OSError | RuntimeError):
                said = f"{type(error).__name__}: {said}"
            return ("failed", said, traceback.format_exc())

    crew.serve(pipe, build)
