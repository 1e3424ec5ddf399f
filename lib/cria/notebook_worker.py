"""One process of `cria.together`: runs the notebooks that it is handed, one by one.

papermill tells where it is to a logger that a whole process shares: two notebooks at
once need two processes. It tells the parent what happens: ("said", where it is),
("ran", seconds), ("stopped",) or ("failed", the error).
"""

from __future__ import annotations

import traceback
from multiprocessing.connection import Connection
from pathlib import Path

from cria import crew, notebooks


def work(pipe: Connection, parameters: dict) -> None:
    """Run what comes through the pipe, (notebook, copy), until it is closed."""

    def run(asked: tuple[Path, Path]) -> tuple:
        path, out = asked
        try:
            at = notebooks.run(path, out, parameters, lambda p: pipe.send(("said", p)))
            return ("ran", at)
        except (ValueError, OSError, notebooks.NotebookError) as error:
            return ("failed", error)
        except Exception as error:  # it may hold what no pipe can carry
            said = f"{path.stem} stopped: {type(error).__name__}: {error}"
            return ("failed", notebooks.NotebookError(said, traceback.format_exc()))

    crew.serve(pipe, run)
