"""The notebooks: run them, and keep their saved outputs true to their code.

A committed notebook is executed in the course profile and stamped: its metadata
says which code cells gave which outputs. `faults` finds a notebook whose code was
changed afterwards, or whose outputs were.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cria import __version__, asked, fingerprint, names, stages
from cria.watching import Progress, watching

if TYPE_CHECKING:  # imported where it is used: every notebook would wait for it
    import nbformat

KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
DEFAULTS = {"profile": "course", "seed": 0}
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookError(RuntimeError):
    """A cell failed. `traceback` is the cell's, as text."""

    def __init__(self, said: str, traceback: str = "") -> None:
        super().__init__(said)
        self.traceback = traceback


def folder() -> Path:
    """Where the notebooks are."""
    return stages.ROOT / "notebooks"


def built() -> Path:
    """Where executed copies go."""
    return stages.ROOT / "build" / "notebooks"


def find(wanted: list[str]) -> list[Path]:
    """Notebooks by name, by the start of a name ("03") or by path; [] means all.

    Always in the order of the course. Raises ValueError naming the nearest one.
    """
    known = {path.stem: path for path in sorted(folder().glob("[0-9]*.ipynb"))}
    found = set()
    for name in wanted:
        stem = Path(name).name.removesuffix(".ipynb")
        matches = [known[stem]] if stem in known else []
        matches = matches or [
            p for s, p in known.items() if stem and s.startswith(stem)
        ]
        if not matches:
            raise ValueError(names.unknown("notebook", stem, known))
        found.update(matches)
    return sorted(found) if wanted else list(known.values())


def run(
    path: Path,
    out: Path,
    parameters: dict,
    watch: Callable[[Progress], None] | None = None,
) -> float:
    """Run a notebook through papermill into `out`; the seconds that it took.

    `watch` is called as cells begin and as they print.
    Raises ValueError for a parameter that the notebook does not have (papermill only
    warns), NotebookError when a cell fails; `out` then ends with that cell. When the
    run is interrupted, `out` is left as it was.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    notebook = read(path)
    known = papermill.inspect_notebook(str(path))
    for name in parameters:
        if name not in known:
            raise ValueError(
                f"{path.stem} has no parameter {name}: its parameters cell must set it."
            )
    out.parent.mkdir(parents=True, exist_ok=True)
    growing = out.with_name(f".{out.stem}.{os.getpid()}.ipynb")
    start = time.monotonic()
    try:
        with watching(watch, cells=len(notebook.cells) + bool(parameters)):
            papermill.execute_notebook(
                str(path.resolve()),
                str(growing.resolve()),
                parameters=parameters,
                kernel_name=KERNEL["name"],
                progress_bar=False,
                log_output=watch is not None,
                request_save_on_cell_execute=False,
                cwd=str(path.resolve().parent),
            )
        os.replace(growing, out)
    except PapermillExecutionError as error:
        os.replace(growing, out)
        text = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
        at = f"{path.stem} stopped in cell {error.cell_index + 1}"
        raise NotebookError(f"{at}: {error.ename}: {error.evalue}", text) from None
    finally:
        growing.unlink(missing_ok=True)
    return time.monotonic() - start


def execute_in_place(
    path: Path, scratch: Path, watch: Callable[[Progress], None] | None = None
) -> float:
    """Run a notebook with its own defaults and save it, clean and stamped."""
    import nbformat
    import papermill

    for name, value in DEFAULTS.items():
        found = papermill.inspect_notebook(str(path)).get(name, {}).get("default")
        if found != repr(value).replace("'", '"'):
            raise ValueError(
                f"the parameters cell of {path.stem} must say {name} = {value!r}."
            )
    scratch.mkdir(parents=True, exist_ok=True)
    wanted = scratch / f".{path.stem}.asked"
    wanted.unlink(missing_ok=True)
    with asked.noting(wanted):
        seconds = run(path, scratch / path.name, {}, watch)
    notebook = _cleaned(read(scratch / path.name))
    notebook.metadata["cria"] = {
        **DEFAULTS,
        "seconds": round(seconds),
        "stages": asked.read(wanted),
        "version": __version__,
        "code": code_digest(notebook),
        "outputs": outputs_digest(notebook),
    }
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    nbformat.write(notebook, unfinished)
    os.replace(unfinished, path)
    return seconds


def faults(path: Path) -> list[str]:
    """Why the saved outputs cannot be trusted, one sentence each; [] if they can."""
    notebook = read(path)
    stamp = notebook.metadata.get("cria", {})
    again = f"run `cria execute {path.stem}`"
    if "code" not in stamp:
        return [f"{path.stem} was never executed and stamped: {again}."]
    found = []
    if stamp["code"] != code_digest(notebook):
        found.append(f"{path.stem}: code cells differ from the executed ones: {again}.")
    elif stamp["outputs"] != outputs_digest(notebook):
        found.append(f"{path.stem}: outputs differ from the executed ones: {again}.")
    if any(stamp.get(name) != value for name, value in DEFAULTS.items()):
        found.append(f"{path.stem} was not executed in the course profile: {again}.")
    return found


def stamped(path: Path) -> bool:
    """Was it executed and stamped, so that `needs` knows the stages it asks for?"""
    return "stages" in read(path).metadata.get("cria", {})


def needs(path: Path) -> list[str]:
    """The stages that it asked for when its outputs were made; [] if never made."""
    stamped = read(path).metadata.get("cria", {}).get("stages", [])
    return [name for name in stamped if name in stages.STAGES]


def code_digest(notebook: nbformat.NotebookNode) -> str:
    """sha256 of the code cells, in order."""
    return fingerprint.of_value([cell.source for cell in _code(notebook)])


def outputs_digest(notebook: nbformat.NotebookNode) -> str:
    """sha256 of the saved outputs, in order."""
    return fingerprint.of_value([cell.outputs for cell in _code(notebook)])


def read(path: Path) -> nbformat.NotebookNode:
    """Read a notebook. Raises ValueError when it is not one."""
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, AttributeError):
        raise ValueError(f"{path.name} is not a notebook that can be read.") from None


def _code(notebook: nbformat.NotebookNode) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _cleaned(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without papermill's diary, which holds paths and times of this machine."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = dict(KERNEL)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]  # papermill adds empty lists
    for cell in _code(notebook):
        cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
    if not any(WIDGET in o.get("data", {}) for c in _code(notebook) for o in c.outputs):
        notebook.metadata.pop("widgets", None)
    return notebook


def _is_bar(output: nbformat.NotebookNode) -> bool:
    """A progress bar: saved, it would stand at 0 % for ever."""
    data = output.get("data", {})
    return WIDGET in data and "%|" in data.get("text/plain", "")
