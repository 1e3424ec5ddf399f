"""The ledger: what the paper claims, what this run saw, and a computed verdict.

    findings.record(1, profile=config, seed=seed, fact_accuracy=0.3, …)
    findings.show([1, 2])

`data/findings.yaml` holds the claims and how each is measured. `record` writes this
run's values to build/findings.json. `keep` moves them, one row a seed, into
data/results/ by profile, and recorded seeds decide the verdict wherever there are any.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from cria import (
    claims,
    fingerprint,
    names,
    recorded,
    scoreboard,
    stage_cache,
    stages,
)
from cria import config as configs
from cria.claims import SMOKE, Row, Run, Seen
from cria.intervals import Interval, t_interval
from cria.provenance import machine, now, versions, write_json, write_text


def record(
    id: int, /, *, profile: str | configs.Config, seed: int, **values: float
) -> None:
    """Write this run's values of a claim's measures into the ledger.

    profile: the config that was used, or the name of the profile. Measures may come
    in several calls; those of a run with other settings are dropped. A value that
    is not finite counts as not measured.
    Raises ValueError for an unknown claim or measure, naming the nearest.
    """
    claim = recorded.claim(id)
    known = [measure.name for measure in claim.measures]
    for name in values:
        if name not in known:
            raise ValueError(
                names.unknown(f"measure of finding {id} named", name, known)
            )
    config = configs.load(profile) if isinstance(profile, str) else profile
    settings = configs.to_dict(config)
    digest = fingerprint.of_value(settings)[:16]
    path = ledger_path()
    with stage_cache.lock(path, say=lambda line: None):
        ledger = _read_ledger(path)
        runs = ledger["runs"].setdefault(f"{config.profile}/{seed}", {})
        old = runs.get(str(id), {})
        merged = old.get("values", {}) if old.get("config") == digest else {}
        finite = {name: _number(value) for name, value in values.items()}
        runs[str(id)] = {
            "values": {**merged, **finite},
            "config": digest,
            "changed": _changed(config, settings),
            "date": now(),
        }
        ledger["configs"][digest] = settings
        write_json(path, ledger)


def keep(ids: Iterable[int] | None, profile: str, seed: int) -> list[int]:
    """Move a run's values into data/results/ as one recorded seed; the ids kept.

    A seed that is already there is replaced. Seeds of different settings are never
    averaged (`cria.settings_read` says which of them count): ValueError then says
    which file to delete to begin anew.
    """
    from cria.training import pick_dtype  # torch: slow, and only wanted here

    recorded.no_smoke(profile)
    auto = str(pick_dtype("auto")).removeprefix("torch.")
    ledger = _read_ledger(ledger_path())
    run = ledger["runs"].get(f"{profile}/{seed}", {})
    wanted = [int(key) for key in run] if ids is None else list(ids)
    for id in wanted:
        claim, entry = recorded.claim(id), run.get(str(id))
        missing = [m.name for m in claim.measures if _value(entry, m.name) is None]
        if missing:
            raise ValueError(
                f"finding {id} has no {missing[0]} in {profile}/{seed}: run the "
                f"notebook {claim.notebook} with that profile and seed first."
            )
    for id in wanted:
        entry, path = run[str(id)], recorded.path_of(id, profile)
        settings = ledger["configs"][entry["config"]]
        kept = recorded.same_settings(id, profile, settings)
        row = {
            "seed": seed,
            "values": entry["values"],
            "date": entry["date"],
            "versions": versions(),
            "machine": {**machine(), "auto_dtype": auto},  # what dtype: auto was
        }
        others = [r for r in kept["rows"] if r["seed"] != seed] if kept else []
        rows = sorted([*others, row], key=lambda r: r["seed"])
        head = {"finding": id, "profile": profile, "config": settings}
        write_json(path, {**head, "rows": rows})
    return sorted(wanted)


def table(
    ids: Iterable[int] | None = None,
    profile: str | None = None,
    seed: int | None = None,
    *,
    only: Collection[str] | None = None,
) -> list[Row]:
    """The scoreboard's rows. "This run" is the latest one of `profile` and `seed`.

    Without a profile, a smoke run is taken only where there is no other.
    only: the profiles whose recorded seeds count; None means all.
    """
    runs = _read_ledger(ledger_path())["runs"]
    names = [name for name in recorded.profiles() if only is None or name in only]
    rows = []
    for id in claims.read() if ids is None else ids:
        claim = recorded.claim(id)
        kept = {name: recorded.results(id, name) for name in names}
        run, entry = _latest(runs, id, profile, seed)
        seen = tuple(
            Seen(measure, _value(entry, measure.name), _intervals(kept, measure.name))
            for measure in claim.measures
        )
        rows.append(Row(claim, seen, run))
    return rows


def show(
    ids: Iterable[int] | None = None,
    profile: str | configs.Config | None = None,
    seed: int | None = None,
) -> scoreboard.Scoreboard:
    """The scoreboard for a notebook: its repr is text, its HTML a table."""
    name = profile.profile if isinstance(profile, configs.Config) else profile
    return scoreboard.Scoreboard(tuple(table(ids, name, seed)))


def readme_table() -> str:
    """The README's table, in Markdown, from the recorded seeds of our profiles only."""
    rows = table(profile="", only=configs.presets())  # no run has an empty profile
    return scoreboard.markdown(rows)


def write_readme() -> bool:
    """Renew the findings in the README; False if they were up to date."""
    path = stages.ROOT / "README.md"
    old = path.read_text("utf-8")
    before, begin, rest = old.partition(scoreboard.BEGIN)
    _, end, after = rest.partition(scoreboard.END)
    if not (begin and end):
        raise ValueError(
            "the README has no place for the findings: put the two lines "
            f"{scoreboard.BEGIN} and {scoreboard.END} where they belong."
        )
    new = before + readme_table() + after
    write_text(path, new)
    return new != old


def ledger_path() -> Path:
    """Where this run's values are: beside the cache of the stages."""
    cache = os.environ.get("CRIA_CACHE")
    folder = Path(cache).expanduser() if cache else stages.ROOT / "build"
    return folder / "findings.json"


def _read_ledger(path: Path) -> dict:
    if not path.exists():
        return {"configs": {}, "runs": {}}
    try:
        ledger = json.loads(path.read_text("utf-8"))
        return {"configs": ledger["configs"], "runs": ledger["runs"]}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path.name} is damaged: delete it and run the notebooks again."
        ) from None


def _latest(
    runs: dict, id: int, profile: str | None, seed: int | None
) -> tuple[Run | None, dict | None]:
    """The newest entry for a claim; one that is not smoke goes before."""
    found = []
    for name, entries in runs.items():
        run_profile, _, run_seed = name.rpartition("/")
        fits = profile in (None, run_profile) and seed in (None, int(run_seed))
        if fits and (entry := entries.get(str(id))):
            run = Run(run_profile, int(run_seed), entry["date"], entry["changed"])
            found.append((run_profile != SMOKE, entry["date"], run, entry))
    if not found:
        return None, None
    return max(found, key=lambda item: item[:2])[2:]


def _intervals(kept: Mapping[str, dict | None], name: str) -> dict[str, Interval]:
    """A measure's interval over the seeds of every profile that has any."""
    values = {
        profile: [
            value for row in found["rows"] if (value := _value(row, name)) is not None
        ]
        for profile, found in kept.items()
        if found
    }
    return {profile: t_interval(seen) for profile, seen in values.items() if seen}


def _value(entry: dict | None, name: str) -> float | None:
    return entry["values"].get(name) if entry else None


def _number(value: float) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _changed(config: configs.Config, settings: dict) -> bool:
    """Has the learner turned a knob, so that this is not the profile any more?"""
    try:
        return settings != configs.to_dict(configs.load(config.profile))
    except (ValueError, FileNotFoundError):  # a file of their own: it is what it is
        return False
