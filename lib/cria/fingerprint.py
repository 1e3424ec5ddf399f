"""Fingerprints: short names for code, data and settings that change when they do.

A cached result may be used again only while everything it was made from is the
same. This file says what "the same" means, for source code, files and settings.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import importlib.util
import json
from collections.abc import Container
from functools import cache
from pathlib import Path


def of_value(value: object) -> str:
    """sha256 of a setting: a dataclass, dict, list, string, number, bool or None."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def of_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_files(root: Path, patterns: tuple[str, ...], skip: tuple[str, ...] = ()) -> str:
    """sha256 over the names and bytes of the files under `root` that match.

    Raises FileNotFoundError when a pattern matches nothing: a stage that names a
    file which is not there would otherwise be cached under a meaningless name.
    """
    found: dict[str, str] = {}
    for pattern in patterns:
        matches = [path for path in root.glob(pattern) if path.is_file()]
        if not matches:
            raise FileNotFoundError(
                f"no file matches {pattern} in the folder {root.name}/: "
                "restore it, or correct the stage's data list."
            )
        for path in matches:
            if path.name not in skip:
                found[path.relative_to(root).as_posix()] = of_file(path)
    return of_value(found)


def of_code(module: str, skip: Container[str] = ()) -> str:
    """sha256 of a module and of all it imports from its own package.

    skip: modules whose own code does not count; what they import still does.

    Docstrings, comments and layout do not count, so a better explanation never
    costs a learner a training run. Other packages do not count either: their
    versions are written into the provenance.
    """
    parts = {
        name: _stripped(path.read_text("utf-8"))
        for name, path in closure(module).items()
        if name not in skip
    }
    return of_value(parts)


def closure(module: str) -> dict[str, Path]:
    """The modules that `module` reaches by imports within its package, with files.

    Imports inside functions count. Nothing is executed, only read.
    """
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"there is no module {module}: check the stage's name for it.")
    locations = spec.submodule_search_locations
    home = Path(locations[0]) if locations else None
    reached: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _file(name, package, home, Path(spec.origin))
        if path is None or name in reached:
            continue
        reached[name] = path
        waiting += _imports(name, path)
        # importing a.b.c runs a and a.b as well
        waiting += [name.rpartition(".")[0]] if "." in name else []
    if module not in reached:
        raise ValueError(f"there is no module {module}: check the stage's name for it.")
    return reached


def _file(name: str, package: str, home: Path | None, origin: Path) -> Path | None:
    """The file of a module of this package; None for anything else."""
    if name == package:
        return origin
    if home is None or not name.startswith(package + "."):
        return None
    stem = home.joinpath(*name.split(".")[1:])
    for path in (stem.with_name(stem.name + ".py"), stem / "__init__.py"):
        if path.is_file():
            return path
    return None


def _imports(name: str, path: Path) -> list[str]:
    """Every dotted name that the module's import statements could mean."""
    dotted = []
    for level, base, imported in _import_statements(path.read_text("utf-8")):
        if level:
            parents = name.split(".")
            # an __init__ is its own package, any other module sits in one
            up = level - (path.name == "__init__.py")
            anchor = ".".join(parents[: len(parents) - up])
            base = f"{anchor}.{base}" if base else anchor
        dotted.append(base)
        # "from cria import model": the name may be a module, or just a name
        dotted += [f"{base}.{name}" for name in imported]
    return dotted


@cache
def _import_statements(source: str) -> list[tuple[int, str, tuple[str, ...]]]:
    """(dots in front, module, names taken from it) of each import in the source."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [(0, alias.name, ()) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            taken = tuple(alias.name for alias in node.names)
            found.append((node.level, node.module or "", taken))
    return found


@cache
def _stripped(source: str) -> str:
    """The code without docstrings, comments and layout."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def plain(value: object) -> object:
    """Dataclasses to dicts, tuples to lists, all the way down."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain(dataclasses.asdict(value))
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value
