"""Every notebook runs alone from an empty cache, and its saved pages are its own."""

import ast
import json
import os
import re
from functools import cache
from pathlib import Path

import papermill
import pytest

from cria import asked, claims, notebooks, stages

ROOT = Path(__file__).resolve().parents[2]
PATHS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
FREE = {"derivation", "exercise"}  # cells that build what the library has already
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in notebooks.read(path).cells if cell.cell_type == "code"]


def tags(cell):
    return set(cell.metadata.get("tags", []))


def test_the_notebooks_are_numbered_without_a_gap():
    assert [path.stem[:2] for path in PATHS] == [f"{i:02d}" for i in range(13)]


def test_the_readme_leads_to_every_notebook():
    readme = (ROOT / "README.md").read_text("utf-8")
    linked = re.findall(
        r"^\| \[(\d\d)\]\(notebooks/(.+)\.ipynb\)", readme, re.MULTILINE
    )
    assert [stem for _, stem in linked] == [path.stem for path in PATHS]
    assert all(stem.startswith(number) for number, stem in linked)


@every_notebook
def test_runs_alone_from_an_empty_cache(path, tmp_path, monkeypatch):
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))
    lib = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", lib)
    out = tmp_path / path.name
    with asked.noting(tmp_path / "asked"):
        notebooks.run(path, out, {"profile": "smoke", "seed": 1})
    for cell in code_cells(out):
        assert cell.execution_count or not cell.source.strip()
        assert not [o for o in cell.outputs if o.output_type == "error"]

    # Its stamp lists the stages that it asks for, so that they can be built ahead.
    wanted, stamped = asked.read(tmp_path / "asked"), notebooks.needs(path)
    assert stages.upstream(stamped) == stages.upstream(wanted), (
        f"run `cria execute {path.stem}`"
    )

    # It measures, by name, all that the ledger expects of it, with its parameters.
    ledger = tmp_path / "cache" / "findings.json"
    runs = json.loads(ledger.read_text())["runs"] if ledger.exists() else {}
    seen = {id: set(entry["values"]) for id, entry in runs.get("smoke/1", {}).items()}
    for claim in claims.read().values():
        if claim.notebook == path.stem:
            assert seen.get(str(claim.id)) == {m.name for m in claim.measures}, (
                f"finding {claim.id} belongs to {path.stem}, which must record it"
            )


@every_notebook
def test_has_its_parameters_with_the_course_defaults(path):
    """papermill only warns of an unknown parameter: here it is an error."""
    found = papermill.inspect_notebook(str(path))
    assert {name: found[name]["default"] for name in ("profile", "seed")} == {
        "profile": '"course"',
        "seed": "0",
    }
    tagged = [cell for cell in code_cells(path) if "parameters" in tags(cell)]
    assert len(tagged) == 1


@every_notebook
def test_committed_outputs_belong_to_the_committed_code(path):
    assert notebooks.faults(path) == []


@every_notebook
def test_saved_pages_are_clean(path):
    notebook = notebooks.read(path)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.cells[0].source.startswith("# ")
    page = json.dumps(notebook)
    assert str(ROOT) not in page and str(Path.home()) + "/" not in page
    for cell in code_cells(path):
        for output in cell.outputs:
            assert output.output_type != "error"
            # pictures and scripts are in the page, never fetched from the net
            for text in output.get("data", {}).values():
                assert "src=http" not in re.sub("['\"]", "", str(text))


@every_notebook
def test_cells_are_short_and_narrow(path):
    for cell in code_cells(path):
        lines = cell.source.splitlines()
        assert len(lines) <= 25, f"{len(lines)} lines: {cell.source[:60]!r} …"
        wide = [line for line in lines if len(line) > 80]
        assert not wide, f"scrolls sideways in the book: {wide[0]!r}"


@every_notebook
def test_uses_the_library_instead_of_writing_it_again(path):
    for cell in code_cells(path):
        lines = cell.source.splitlines()
        assert not any(re.match(r"\s*[!%]", line) for line in lines), "shell or magic"
        if tags(cell) & FREE:
            continue
        defined = {
            node.name
            for node in ast.parse(cell.source).body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        again = defined & library_names()
        assert not again, f"{again}: import it, or tag the cell derivation or exercise"


@cache
def library_names():
    """Every public function and class of the library."""
    return {
        node.name
        for path in (ROOT / "lib" / "cria").rglob("*.py")
        for node in ast.parse(path.read_text("utf-8")).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name[0] != "_"
    }


def test_the_ledger_names_notebooks_that_exist():
    known = {path.stem for path in PATHS}
    for claim in claims.read(stages.ROOT / "data" / "findings.yaml").values():
        assert claim.notebook in known
