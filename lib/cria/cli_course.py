"""The commands that run notebooks: `cria run`, `cria record`, `cria execute`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cria import names
from cria.cli_usage import config_of, count, near, understood


def run(arguments: argparse.Namespace) -> None:
    """Run notebooks in order through papermill, then print the scoreboard."""
    from cria import findings, notebooks, scoreboard

    config = config_of(arguments.profile)
    paths = understood(notebooks.find, arguments.notebooks)
    if not paths:
        raise FileNotFoundError(f"there are no notebooks in {notebooks.folder()}.")
    out = Path(arguments.out) if arguments.out else notebooks.built()
    print(
        f"Running {count(len(paths), 'notebook')}, profile {config.profile}, "
        f"seed {arguments.seed}; the executed copies go to {near(out)}."
    )
    begun = time.monotonic()
    through(paths, config, arguments.profile, arguments.seed, out)
    print(f"All done in {names.duration(time.monotonic() - begun)}.\n")
    print("The paper says, and we saw:\n")
    rows = findings.table(profile=config.profile, seed=arguments.seed)
    print(scoreboard.text(rows, measured_only=True))


def execute(arguments: argparse.Namespace) -> None:
    """Run notebooks in the course profile and save them in place, stamped."""
    from cria import config, notebook_times, notebooks, stage_times, watching

    paths = understood(notebooks.find, arguments.notebooks)
    profile, seed = notebooks.DEFAULTS["profile"], notebooks.DEFAULTS["seed"]
    models(paths, config.load(profile), seed)
    for path in paths:
        ticker = watching.Ticker(path.stem)
        seconds = notebooks.execute_in_place(path, notebooks.built(), ticker)
        notebook_times.renew(path, seconds)
        ticker.close(f"{path.stem} executed in {names.duration(seconds)}")
    stage_times.renew()


def record(arguments: argparse.Namespace) -> None:
    """Run the notebooks of findings with several seeds and keep what they measure."""
    from cria import findings, notebooks, recorded

    config = config_of(arguments.profile)
    ids = arguments.ids or recorded.recordable()
    places = {id: understood(recorded.notebook_of, id) for id in ids}
    # Other settings, and smoke, are refused here: before hours of training.
    there = {id: recorded.kept_seeds(id, config) for id in ids}
    for i, seed in enumerate(arguments.seeds):
        label = f"Seed {seed} ({i + 1} of {len(arguments.seeds)}), {config.profile}"
        missing = [id for id in ids if seed not in there[id]]
        if not missing:
            print(f"{label}: recorded already.")
            continue
        listed = ", ".join(map(str, missing))
        print(f"{label}: findings {listed}.", flush=True)

        def keep(path: Path, seed=seed, missing=missing) -> None:
            own = [id for id in missing if places[id] == path]
            findings.keep(own, config.profile, seed)

        out = notebooks.built().parent / "recorded" / f"{config.profile}-{seed}"
        paths = sorted({places[id] for id in missing})
        through(paths, config, arguments.profile, seed, out, keep)
    print("All recorded. `cria findings --readme` renews the README's table.")


def through(
    paths: Sequence[Path],
    config: object,
    profile: str,
    seed: int,
    out: Path,
    after: Callable[[Path], object] = lambda path: None,
) -> None:
    """Build what the notebooks need, then run them into `out`, one a core.

    after: called with every notebook when it has run.
    """
    from cria import together, watching

    models(paths, config, seed)
    # The notebook runs in its own folder: a settings file must be found from there.
    profile = str(Path(profile).resolve()) if Path(profile).is_file() else profile
    ticker, begun = watching.Ticker("notebooks"), time.monotonic()

    def told(state: together.State) -> None:
        left = ""
        if state.left is not None and state.left >= 1:  # else: any moment now
            left = f", about {names.duration(state.left)} left"
        if state.ran:
            path, seconds = state.ran
            after(path)
            done = f"[{state.done}/{state.total}] {path.stem} done"
            ticker.stay(f"{done} in {names.duration(seconds)}{left}")
            return
        gone = names.duration(time.monotonic() - begun)
        at_work = ", ".join(map(where, state.running.items()))
        lines = [
            at.line
            for at in state.running.values()
            if at and at.line[:1] not in ("", "<")
        ]
        done = f"{state.done}/{state.total} done, {gone} gone{left}; "
        ticker.say(f"{done}{at_work}  {lines[0] if len(lines) == 1 else ''}".rstrip())

    def where(running: tuple[str, watching.Progress | None]) -> str:
        name, at = running
        return f"{name} cell {at.cell}/{at.cells}" if at else f"{name} begins"

    together.run(paths, out, {"profile": profile, "seed": seed}, watch=told)


def models(paths: Sequence[Path], config: object, seed: int) -> None:
    """Build the stages that the notebooks will ask for, and say how far we are."""
    from cria import ahead, crew, notebook_times, notebooks, watching

    wanted = dict.fromkeys(name for path in paths for name in notebooks.needs(path))
    after = sum(notebook_times.read(paths).values())
    after /= max(min(crew.cores(), crew.MOST, len(paths)), 1)
    ticker = watching.Ticker("models")
    begun = time.monotonic()

    def told(state: ahead.State) -> None:
        if state.built:
            name, seconds = state.built
            done = f"[{state.done}/{state.total}] built {name}"
            ticker.stay(f"{done} in {names.duration(seconds)}{left(state)}")
        else:
            at_work = ", ".join(state.running)
            ticker.say(f"building {at_work}{left(state)}  {state.line}")

    def left(state: ahead.State) -> str:
        if state.left is None:
            return ""
        seconds = state.left + after * (state.pace or 1.0)
        return f", about {names.duration(seconds)} left with the notebooks"

    if built := ahead.build(wanted, config, seed, watch=told):
        gone = names.duration(time.monotonic() - begun)
        ticker.close(f"{count(len(built), 'stage')} built in {gone}.")
