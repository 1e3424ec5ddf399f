"""The files that set Cria up agree with one another."""

import re
import runpy
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
SETUP = ["requirements.txt", "constraints.txt", "pyproject.toml", "environment.yml"]


def lines(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def project_name(requirement):
    name = re.match(r"[A-Za-z0-9._-]+", requirement).group()
    return re.sub(r"[-_.]+", "-", name).lower()


def pins():
    """name → the lines that pin it (one for each marker)."""
    found = {}
    for line in lines("constraints.txt"):
        found.setdefault(project_name(line), []).append(line)
    return found


def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_constraint_is_one_exact_version():
    for line in lines("constraints.txt"):
        assert re.fullmatch(r"[a-z0-9.-]+==[0-9][^ ;]*( ; .+)?", line), line


def test_every_requirement_and_extra_is_pinned():
    extras = project()["project"]["optional-dependencies"]
    assert set(extras) >= {"dev", "book"}
    asked = lines("requirements.txt") + [name for e in extras.values() for name in e]
    assert {project_name(requirement) for requirement in asked} <= set(pins())


def test_torch_is_held_for_every_platform():
    assert pins()["torch"] == ["torch==2.13.0"]


def test_trl_is_the_release_that_the_oracle_was_written_for():
    assert pins()["trl"] == ["trl==1.12.0"]


@pytest.mark.parametrize("name", [*SETUP, "Makefile", "tools/setup.sh", ".ci/run"])
def test_no_address_and_no_machine_path(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.~])/(opt|root|home|Users)/", text)
    if name != "Makefile":
        for word in ("://", "index-url", "find-links"):
            assert word not in text


def test_environment_yml_gives_python_and_the_pinned_packages():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "dependencies"}  # no channel needed
    *conda, last = environment["dependencies"]
    assert [spec.split("=")[0] for spec in conda] == ["python", "pip"]
    python = next(spec for spec in conda if spec.startswith("python="))
    assert python.split("=")[1] in ("3.11", "3.12", "3.13")
    assert set(last["pip"]) == {"-r requirements.txt", "-c constraints.txt", "-e ."}


def test_the_package_takes_its_dependencies_from_requirements_txt():
    dynamic = project()["tool"]["setuptools"]["dynamic"]
    assert dynamic["dependencies"] == {"file": ["requirements.txt"]}
    assert project()["project"]["scripts"] == {"cria": "cria.cli:main"}


def test_a_built_package_carries_the_presets():
    data = project()["tool"]["setuptools"]["package-data"]["cria"]
    carried = {path for glob in data for path in (ROOT / "lib/cria").glob(glob)}
    assert set((ROOT / "lib/cria").rglob("*.yaml")) <= carried


@pytest.mark.parametrize(
    "target", ["help", "course", "test", "lint", "lab", "book", "clean"]
)
def test_make_knows_its_targets(target):
    done = subprocess.run(
        ["make", "-n", target], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_make_help_names_every_public_target():
    text = subprocess.check_output(["make", "help"], cwd=ROOT, text=True)
    for target in ("course", "lab", "test", "lint", "book", "clean"):
        assert f"make {target} " in text


def setup_copy(tmp_path):
    """A folder with spaces in its name that holds only what set-up reads."""
    folder = tmp_path / "a bare clone"
    (folder / "tools").mkdir(parents=True)
    for name in ("Makefile", "tools/setup.sh", *SETUP):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    return folder


def fake_python(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def run_setup(folder, python, *args):
    return subprocess.run(
        ["sh", "tools/setup.sh", *args],
        cwd=folder,
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)},
        capture_output=True,
        text=True,
    )


# A Python that "makes" a venv holding itself, and notes what pip is asked for.
WORKING = """
case "$1 $2" in
"-m venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-m pip") echo "$@" >> pip.log; [ ! -e fail ] ;;
esac"""


def test_without_a_fitting_python_set_up_says_so_and_leaves_nothing(tmp_path):
    folder = setup_copy(tmp_path)
    done = run_setup(folder, fake_python(tmp_path / "old", "exit 1"))
    assert done.returncode != 0
    assert "Python 3.11, 3.12 or 3.13" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (folder / ".venv").exists()


def test_set_up_is_complete_only_at_its_end(tmp_path):
    folder, python = setup_copy(tmp_path), fake_python(tmp_path / "python", WORKING)
    (folder / "fail").touch()  # pip stops half way
    assert run_setup(folder, python).returncode != 0
    assert not (folder / ".venv/.ready").exists()
    (folder / ".venv/half-installed").touch()

    (folder / "fail").unlink()
    done = run_setup(folder, python)
    assert done.returncode == 0, done.stderr
    assert "interrupted" in done.stdout
    assert not (folder / ".venv/half-installed").exists()
    assert (folder / ".venv/.ready").read_text().strip() == str(folder.resolve())
    assert "-c constraints.txt" in (folder / "pip.log").read_text()


def make_would_set_up(folder):
    done = subprocess.run(
        ["make", "-n", ".venv/.ready"], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return "tools/setup.sh" in done.stdout


def test_make_sets_up_once_and_again_when_it_must(tmp_path):
    folder, python = setup_copy(tmp_path), fake_python(tmp_path / "python", WORKING)
    assert make_would_set_up(folder)
    assert run_setup(folder, python).returncode == 0
    assert not make_would_set_up(folder)

    (folder / ".venv/.unfinished").touch()  # an extra was being added
    assert make_would_set_up(folder)
    (folder / ".venv/.unfinished").unlink()

    moved = folder.rename(tmp_path / "moved")
    assert make_would_set_up(moved)
    assert "moved" in run_setup(moved, python).stdout
    assert not make_would_set_up(moved)

    (moved / ".venv/bin/python").unlink()  # the Python was upgraded away
    assert make_would_set_up(moved)


def test_a_book_needs_notebooks_that_ran(tmp_path, capsys):
    main = runpy.run_path(str(ROOT / "book/prepare.py"))["main"]
    executed, source = tmp_path / "notebooks", tmp_path / "source"
    assert main(executed, source) == 1
    assert "make course" in capsys.readouterr().out

    executed.mkdir()
    for name in ("01_b.ipynb", "00_a.ipynb", "scratch.ipynb"):
        (executed / name).write_text("{}")
    assert main(executed, source) == 0
    assert "00_a\n01_b\n```" in (source / "index.md").read_text()
    assert not (source / "scratch.ipynb").exists()


def test_the_readme_has_no_gaps():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not re.search(r"\b[A-Z]+-MINUTES\b", text)
