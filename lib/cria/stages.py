"""The stages of the recipe: each is built once, kept on disk, and found again.

    base = stages.get("base")          # loads it, or builds it and what it needs
    model, tokenizer = base.model(), base.tokenizer()

A stage is a plain function `(config, seed, upstream, out, **options) -> metrics`
that fills the folder `out`. Its key is a hash of all that could change the result:
the parts of the config it reads, the seed, the stages it starts from, its code and
its data files. The result lives in `<cache>/<name>-<key>/`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cria import asked, fingerprint, names, stage_build, stage_cache
from cria import config as configs
from cria.stage_kind import NOT_WORLD, SETTINGS, Stage
from cria.stage_table import STAGES

if TYPE_CHECKING:  # torch takes seconds to import: only those who need it wait
    from cria.model import Llama
    from cria.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
"""The folder that holds data/, notebooks/ and lib/."""


@dataclass(frozen=True)
class Artifact:
    """A finished stage: its folder, its numbers, and how it came about."""

    name: str
    path: Path
    metrics: dict
    provenance: dict

    def model(self) -> Llama:
        """The stage's network."""
        from cria import checkpoints

        return checkpoints.load(self.file("model.safetensors").parent)

    def tokenizer(self) -> Tokenizer:
        """The stage's tokenizer, or that of a stage it started from."""
        from cria.tokenizer import Tokenizer

        folders = [self.path.parent / f for f in self.provenance["upstream"].values()]
        return Tokenizer(self.file("tokenizer.model", *folders))

    def file(self, name: str, *elsewhere: Path) -> Path:
        """A file of the stage, or of its folder model/. FileNotFoundError if absent."""
        for folder in (self.path, *elsewhere):
            for path in (folder / name, folder / "model" / name):
                if path.is_file():
                    return path
        raise FileNotFoundError(f"the stage {self.name} holds no {name}.")


def get(
    name: str,
    config: object = None,
    seed: int = 0,
    cache: str | Path | None = None,
    *,
    table: Mapping[str, Stage] = STAGES,
    say: Callable[[str], None] = print,
) -> Artifact:
    """Load a stage, or build it and what it needs. One line a stage tells which.

    config: a `Config`, a profile's name or a YAML file; default course.
    cache: where stages live; default $CRIA_CACHE, else build/cache.
    Raises ValueError for an unknown stage, naming the nearest one.
    """
    config, root = _config(config), cache_root(cache)
    keys = _keys((name,), config, seed, table)
    asked.note(name)
    made: dict[str, Artifact] = {}  # so that a stage needed twice is told of once
    return _get(name, config, seed, root, table, say, keys, made)


def _get(name, config, seed, root, table, say, keys, made) -> Artifact:
    if name in made:
        return made[name]
    folder = root / f"{name}-{keys[name]}"
    if found := _load(name, folder):
        say(f"{name}: from cache")
        return made.setdefault(name, found)
    upstream = {
        need: _get(need, config, seed, root, table, say, keys, made)
        for need in table[name].needs
    }
    with stage_cache.lock(folder, lambda line: say(f"{name}: {line}")):
        if _load(name, folder):  # the process we waited for has built it
            say(f"{name}: from cache")
        else:
            if folder.exists():
                say(f"{name}: damaged ({stage_cache.fault(folder)}), so it is rebuilt")
                shutil.rmtree(folder)
            stage_build.build(name, table[name], config, seed, upstream, folder, say)
    return made.setdefault(name, _load(name, folder))


def find(
    name: str,
    config: object = None,
    seed: int = 0,
    cache: str | Path | None = None,
    *,
    table: Mapping[str, Stage] = STAGES,
) -> Artifact | None:
    """The stage if it lies whole in the cache, else None. Builds nothing."""
    digits = key(name, _config(config), seed, table=table)
    return _load(name, cache_root(cache) / f"{name}-{digits}")


def key(
    name: str,
    config: object,
    seed: int,
    *,
    table: Mapping[str, Stage] = STAGES,
) -> str:
    """16 hex digits that change whenever the stage's result could."""
    return _keys((name,), config, seed, table)[name]


def missing(
    wanted: Iterable[str],
    config: object = None,
    seed: int = 0,
    cache: str | Path | None = None,
    *,
    table: Mapping[str, Stage] = STAGES,
) -> list[str]:
    """What `get` would have to build for these stages, in an order that works."""
    config, root, wanted = _config(config), cache_root(cache), list(wanted)
    keys = _keys(wanted, config, seed, table)
    absent: dict[str, bool] = {}

    def visit(name: str) -> None:
        if name in absent:
            return
        absent[name] = _load(name, root / f"{name}-{keys[name]}") is None
        if absent[name]:  # a whole one needs its upstream no more
            for need in table[name].needs:
                visit(need)
            order.append(name)

    order: list[str] = []
    for name in wanted:
        visit(name)
    return order


def upstream(wanted: Iterable[str], *, table: Mapping[str, Stage] = STAGES) -> set[str]:
    """These stages and all that they are made from."""
    found: set[str] = set()
    waiting = list(wanted)
    while waiting:
        name = waiting.pop()
        if name not in table:
            raise ValueError(names.unknown("stage", name, table))
        if name not in found:
            found.add(name)
            waiting += table[name].needs
    return found


def _keys(
    wanted: Iterable[str], config: object, seed: int, table: Mapping[str, Stage]
) -> dict[str, str]:
    """The keys of stages and of all that they need, each worked out once."""
    keys: dict[str, str] = {}

    def visit(name: str) -> str:
        if name not in table:
            raise ValueError(names.unknown("stage", name, table))
        if name not in keys:
            stage = table[name]
            parts = {
                "config": {
                    part: stage_build.part_of(config, part) for part in stage.sections
                },
                "seed": seed,
                "upstream": [visit(need) for need in stage.needs],
                "function": stage.function,
                "code": fingerprint.of_code(
                    stage.function.partition(":")[0], skip=SETTINGS
                ),
                "options": dict(stage.options),
                "data": fingerprint.of_files(ROOT / "data", stage.data, NOT_WORLD),
            }
            keys[name] = fingerprint.of_value(parts)[:16]
        return keys[name]

    for name in wanted:
        visit(name)
    return keys


def cache_root(cache: str | Path | None = None) -> Path:
    """Where stages live: `cache`, else $CRIA_CACHE, else build/cache."""
    chosen = cache or os.environ.get("CRIA_CACHE") or ROOT / "build" / "cache"
    return Path(chosen).expanduser().resolve()


def clean(cache: str | Path | None = None) -> tuple[int, list[str]]:
    """Delete the cached stages: (bytes freed, names of stages still being built)."""
    return stage_cache.clean(cache_root(cache))


def _config(config: object) -> configs.Config:
    if config is None or isinstance(config, str | Path):
        return configs.load(config or "course")
    return config


def _load(name: str, folder: Path) -> Artifact | None:
    """The finished stage in `folder`; None if it is absent or damaged."""
    if stage_cache.fault(folder):
        return None
    provenance = json.loads((folder / stage_cache.SEAL).read_text("utf-8"))
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return Artifact(name, folder, metrics, provenance)
