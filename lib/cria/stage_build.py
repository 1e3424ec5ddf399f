"""Run one stage's function, with only what the stage has named, and write down how.

`cria.stages` says which stages there are; this is what happens when one is missing.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from cria import fingerprint, names, stage_cache
from cria.provenance import machine, now, versions, write_json

if TYPE_CHECKING:
    from cria.stages import Artifact, Stage


def build(
    name: str,
    stage: Stage,
    config: object,
    seed: int,
    upstream: dict[str, Artifact],
    folder: Path,
    say: Callable[[str], None],
) -> None:
    """Run the stage's function in the partial folder, then seal it."""
    out = stage_cache.partial(folder)
    resumed = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    say(f"{name}: {'going on with an interrupted build' if resumed else 'building'} …")
    module, function = stage.function.split(":")
    build = stage.build
    if isinstance(build, str):
        build = getattr(importlib.import_module(module), function)
    start = time.monotonic()
    try:
        metrics = build(
            _Sections(name, stage, config), seed, upstream, out, **stage.options
        )
    except KeyboardInterrupt:
        say(f"{name}: interrupted; the next run goes on from here.")
        raise
    seconds = time.monotonic() - start
    write_json(out / "metrics.json", metrics)
    provenance = {
        "stage": name,
        "profile": getattr(config, "profile", None),
        "config": {
            part: fingerprint.plain(part_of(config, part)) for part in stage.sections
        },
        "seed": seed,
        "options": dict(stage.options),
        "upstream": {need: made.path.name for need, made in upstream.items()},
        "versions": versions(),
        "machine": machine(),
        "date": now(),
        "seconds": round(seconds, 1),
        "resumed": resumed,
    }
    stage_cache.seal(folder, provenance)
    say(f"{name}: built in {names.duration(seconds)}")


def part_of(config: object, part: str) -> object:
    """What a stage names in its sections: "reward", or one knob, "ppo.safety_gate"."""
    return attrgetter(part)(config)


class _Sections:
    """The parts of the config that a stage names, and nothing else.

    All that a stage reads must be in its key, so it can read nothing that is not.
    """

    def __init__(self, name: str, stage: Stage, config: object) -> None:
        self._name = name
        for part in stage.sections:
            section, _, knob = part.partition(".")
            value = part_of(config, part)
            if knob:  # beside others of the same section
                value = SimpleNamespace(
                    **vars(self.__dict__.get(section, SimpleNamespace())),
                    **{knob: value},
                )
            self.__dict__[section] = value

    def __getattr__(self, part: str) -> object:
        raise AttributeError(
            f"the stage {self._name} reads config.{part} without naming it: "
            f'add "{part}" to its sections in cria.stage_table.STAGES.'
        )
