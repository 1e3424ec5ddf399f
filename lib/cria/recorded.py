"""The recorded seeds: a file a finding in data/results/, by profile, one row a seed.

Seeds are averaged only if they have the same settings, as far as these count.
"""

from __future__ import annotations

import json
from pathlib import Path

from cria import claims, fingerprint, notebooks, settings_read, stages
from cria import config as configs
from cria.claims import SMOKE, Claim


def kept_seeds(id: int, config: configs.Config) -> list[int]:
    """The seeds recorded with these settings.

    Raises ValueError if those recorded have other ones, and for the smoke profile.
    """
    no_smoke(config.profile)
    claim(id)
    settings = fingerprint.plain(configs.to_dict(config))
    kept = same_settings(id, config.profile, settings)
    return [row["seed"] for row in kept["rows"]] if kept else []


def recordable() -> list[int]:
    """The findings whose notebooks are there."""
    known = {path.stem for path in notebooks.find([])}
    return [id for id, claim in claims.read().items() if claim.notebook in known]


def notebook_of(id: int) -> Path:
    """The notebook that measures a finding. Raises ValueError if it is not there."""
    name = claim(id).notebook
    path = notebooks.folder() / f"{name}.ipynb"
    if not path.is_file():
        raise ValueError(
            f"finding {id} is measured in the notebook {name}, which is not "
            "there: record others, or write it."
        )
    return path


def claim(id: int) -> Claim:
    """A claim by its number. ValueError for an unknown one."""
    known = claims.read()
    if id not in known:
        raise ValueError(f"there is no finding {id}: they go from 1 to {max(known)}.")
    return known[id]


def profiles() -> list[str]:
    """Those of which there are recorded seeds: ours first, the course before all."""
    files = (stages.ROOT / "data" / "results").glob("*/finding_*.json")
    ours = configs.presets()
    names = sorted({path.parent.name for path in files})
    return sorted(names, key=lambda n: ours.index(n) if n in ours else len(ours))


def path_of(id: int, profile: str) -> Path:
    """Where a claim's recorded seeds of a profile are."""
    return stages.ROOT / "data" / "results" / profile / f"finding_{id:02d}.json"


def results(id: int, profile: str) -> dict | None:
    """What was recorded of a finding; None if nothing was."""
    path = path_of(id, profile)
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text("utf-8"))
        return {key: kept[key] for key in ("profile", "config", "rows")}
    except (ValueError, KeyError, TypeError):
        raise ValueError(
            f"data/results/{profile}/{path.name} is damaged: bring it back from git."
        ) from None


def no_smoke(profile: str) -> None:
    """ValueError for the profile whose numbers mean nothing."""
    if profile == SMOKE:
        raise ValueError(
            "the smoke profile's numbers mean nothing: record another one."
        )


def same_settings(id: int, profile: str, settings: dict) -> dict | None:
    """The recorded seeds of a profile, which must have the same settings, as far as
    they count. The first seed of a preset must have the preset's."""
    kept = results(id, profile)
    if kept:
        model, whose = kept["config"], f"{profile}/{path_of(id, profile).name} holds"
    elif profile in configs.presets():
        model = fingerprint.plain(configs.to_dict(configs.load(profile)))
        whose = f"the profile {profile} means"
    else:
        return None
    notebook = notebooks.folder() / f"{claim(id).notebook}.ipynb"
    other = settings_read.differing(model, settings, settings_read.parts(notebook))
    if other:
        raise ValueError(
            f"{whose} other settings ({', '.join(other)}): name yours in a YAML file"
            f"{', or delete that one to begin anew' if kept else ''}."
        )
    return kept
