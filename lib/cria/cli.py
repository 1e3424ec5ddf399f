"""The command line: `cria run`, `cria chat`, `cria findings`, `cria clean`, …

What a command needs is imported when it runs, so that `cria --help` is quick.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from cria import names


class UsageError(ValueError):
    """The command was not understood: exit code 2."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 well, 1 failed, 2 not understood."""
    given = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in given
    try:
        arguments = _parse([word for word in given if word != "--debug"])
        return arguments.command(arguments) or 0
    except KeyboardInterrupt:
        print("\nStopped. What was trained so far is kept: the same command goes on.")
        return 130
    except BrokenPipeError:  # `cria findings | head`
        sys.stderr.close()
        return 0
    except (ValueError, OSError, RuntimeError) as error:
        if debug:
            print(getattr(error, "traceback", ""), file=sys.stderr)  # of the cell
            raise
        print(f"cria: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def run(arguments: argparse.Namespace) -> None:
    """Run notebooks in order through papermill, then print the scoreboard."""
    from cria import findings, notebooks, scoreboard, watching

    config = _config(arguments.profile)
    paths = _understood(notebooks.find, arguments.notebooks)
    if not paths:
        raise FileNotFoundError(f"there are no notebooks in {notebooks.folder()}.")
    out = Path(arguments.out) if arguments.out else notebooks.built()
    # The notebook runs in its own folder: a settings file must be found from there.
    profile = arguments.profile
    profile = str(Path(profile).resolve()) if Path(profile).is_file() else profile
    parameters = {"profile": profile, "seed": arguments.seed}
    print(
        f"Running {_count(len(paths), 'notebook')}, profile {config.profile}, "
        f"seed {arguments.seed}; the executed copies go to {_near(out)}."
    )
    begun = time.monotonic()
    for i, path in enumerate(paths):
        label = f"[{i + 1}/{len(paths)}] {path.stem}"
        ticker = watching.Ticker(label)
        seconds = notebooks.run(path, out / path.name, parameters, ticker)
        gone = time.monotonic() - begun
        left = notebooks.remaining(paths[: i + 1], paths[i + 1 :], gone)
        ticker.close(
            f"{label} done in {names.duration(seconds)}"
            + (f", about {names.duration(left)} left" if left else "")
        )
    print(f"All done in {names.duration(time.monotonic() - begun)}.\n")
    print("The paper says, and we saw:\n")
    rows = findings.table(profile=config.profile, seed=arguments.seed)
    print(scoreboard.text(rows, measured_only=True))


def chat(arguments: argparse.Namespace) -> None:
    """Talk to a stage, or ask one question with --prompt."""
    from cria import talk
    from cria.stages import STAGES

    config, target = _config(arguments.profile), arguments.target
    known = [name for name, stage in STAGES.items() if stage.speaks]
    if target and target not in STAGES and not Path(target).expanduser().exists():
        raise UsageError(names.unknown("stage or checkpoint", target, known))
    if target in STAGES and target not in known:
        raise UsageError(
            f"the stage {target} holds nobody to talk to; these do: {', '.join(known)}."
        )
    if arguments.prompt is not None and not arguments.prompt.strip():
        raise UsageError("--prompt is empty: give it a question.")
    if not arguments.temperature >= 0 or not 0 < arguments.top_p <= 1:
        raise UsageError("--temperature must be 0 or more, --top-p in 0 to 1.")
    if not arguments.max_new_tokens:
        raise UsageError("--max-new-tokens must be 1 or more.")
    # With --prompt only the answer goes to standard output.
    say = _aside if arguments.prompt is not None else print
    speaker = talk.speaker(target, config, arguments.seed, say, arguments.format)
    if config.profile == "smoke" and speaker.name in STAGES:
        say("The smoke profile learns next to nothing: do not expect sense.")
    options = {
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "max_new_tokens": arguments.max_new_tokens,
    }
    if arguments.prompt is not None:
        messages = [{"role": "user", "content": arguments.prompt}]
        print(speaker.answer(messages, seed=arguments.seed, **options))
        return
    does = "continues your text" if speaker.plain else "answers"
    print(f"{speaker.name} {does}. {talk.COMMANDS}")
    if speaker.name in STAGES:
        print("It knows a village. Try:", "  ".join(talk.examples()))
    talk.converse(speaker, seed=arguments.seed, **options)


def export(arguments: argparse.Namespace) -> None:
    """Write a stage or a checkpoint for transformers, TRL and vLLM."""
    import torch

    from cria import manner, real_weights, stages

    config, target = _config(arguments.profile), arguments.target
    known = [name for name, stage in stages.STAGES.items() if stage.speaks]
    path = Path(target).expanduser()
    if target not in known and not path.exists():
        raise UsageError(names.unknown("stage or checkpoint", target, known))
    if not arguments.shard_gb > 0:
        raise UsageError("--shard-gb must be above 0.")
    if target in known:
        path = stages.get(target, config, arguments.seed, say=_aside).path
    folder = path / "model" if (path / "model").is_dir() else path
    tokenizer = manner.vocabulary(folder)
    way = manner.manner(folder, config.sft.separator, arguments.format)
    real_weights.export(
        folder,
        arguments.out,
        tokenizer,
        dtype=arguments.dtype and getattr(torch, arguments.dtype),
        chat=not way.plain,
        shard_bytes=arguments.shard_gb * 1e9,
    )
    print(f"{arguments.out} is written: transformers, TRL and vLLM open it.")


def plan(arguments: argparse.Namespace) -> None:
    """What a profile's stages take on GPUs: memory, FLOPs, hours, energy."""
    from cria import scale

    config = _config(arguments.profile)
    if arguments.gpus == 0:
        raise UsageError("--gpus must be 1 or more.")
    if not 0 < arguments.mfu <= 1:
        raise UsageError("--mfu must be above 0, at most 1.")
    gpu = _understood(scale.find, arguments.gpu).name
    made = scale.plan(config, arguments.gpus, gpu, arguments.mfu)
    print(json.dumps(scale.to_dict(made), indent=1) if arguments.json else made)


def show_findings(arguments: argparse.Namespace) -> None:
    """Print the ledger, or write its recorded part."""
    from cria import findings, scoreboard

    if arguments.keep:
        profile = _config(arguments.profile or "course").profile
        kept = findings.keep(arguments.ids or None, profile, arguments.seed or 0)
        print(f"Kept {profile}, seed {arguments.seed or 0}, of findings {kept}.")
    elif arguments.readme:
        print(
            "The README is up to date." if not findings.write_readme() else "Written."
        )
    else:
        ids = arguments.ids or None
        profile = _config(arguments.profile).profile if arguments.profile else None
        rows = _understood(findings.table, ids, profile, arguments.seed)
        if arguments.json:
            lines = [line for row in rows for line in scoreboard.plain(row)]
            print(json.dumps(lines, indent=1, ensure_ascii=False))
        else:
            print(scoreboard.text(rows))


def clean(arguments: argparse.Namespace) -> int:
    """Delete the cached stages."""
    from cria import stages

    freed, busy = stages.clean()
    print(f"Deleted the cached stages: {freed / 1e6:.0f} MB freed.")
    for name in busy:
        print(f"{name} is being built just now and was left alone.")
    return 1 if busy else 0


def execute(arguments: argparse.Namespace) -> None:
    """Run notebooks in the course profile and save them in place, stamped."""
    from cria import notebooks, watching

    for path in _understood(notebooks.find, arguments.notebooks):
        ticker = watching.Ticker(path.stem)
        seconds = notebooks.execute_in_place(path, notebooks.built(), ticker)
        ticker.close(f"{path.stem} executed in {names.duration(seconds)}")


def check(arguments: argparse.Namespace) -> int:
    """Do the notebooks' saved outputs belong to their code?"""
    from cria import notebooks

    paths = _understood(notebooks.find, arguments.notebooks)
    faults = [fault for path in paths for fault in notebooks.faults(path)]
    print("\n".join(faults) or f"{_count(len(paths), 'notebook')}, all as executed.")
    return 1 if faults else 0


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise UsageError(f"{message} (see {self.prog} --help).")


def _parser() -> tuple[_Parser, dict[str, _Parser]]:
    parser = _Parser(prog="cria", description="Llama 2-Chat, raised on a laptop.")
    parser.add_argument("--debug", action="store_true", help="show full tracebacks")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    made: dict[str, _Parser] = {}

    def command(name: str, function: Callable, words: str = "") -> Callable:
        first = function.__doc__.strip().splitlines()[0]
        made[name] = commands.add_parser(name, help=first, description=first)
        made[name].set_defaults(command=function)
        if words:
            made[name].add_argument(
                "notebooks", nargs="*", metavar="NOTEBOOK", help=words
            )
        return made[name].add_argument

    def settings(add: Callable, profile: str | None, seed: int | None) -> None:
        add("--profile", default=profile, help="smoke, course, deep or a YAML file")
        add("--seed", type=_whole, default=seed, help="a whole number")

    add = command("run", run, "03, 03_pretrain or a path; none means all")
    settings(add, "course", 0)
    add("--out", metavar="FOLDER", help="for the executed copies (build/notebooks)")
    add = command("chat", chat)
    add(
        "target", nargs="?", metavar="STAGE|PATH", help="default: the newest chat model"
    )
    settings(add, "course", 0)
    add("--prompt", metavar="TEXT", help="one question, then end")
    add("--temperature", type=_float, default=0.0, help="0: the likeliest token")
    add("--top-p", type=_float, default=1.0, help="sample from this share of mass")
    add("--max-new-tokens", type=_whole, default=64, metavar="N")
    spoken = "of a checkpoint by path; default: what its folder says"
    add("--format", choices=("chat", "text"), help=spoken)
    add = command("export", export)
    add("target", metavar="STAGE|PATH", help="also Meta's and Hugging Face's folders")
    add("out", metavar="FOLDER", help="a new one")
    settings(add, "course", 0)
    kinds = ("float32", "bfloat16", "float16")
    add("--dtype", choices=kinds, help="of the new files; default: as stored")
    add("--format", choices=("chat", "text"), help="with a chat template, or without")
    add("--shard-gb", type=_float, default=5.0, metavar="GB", help="largest file (5)")
    add = command("plan", plan)
    add(
        "profile",
        nargs="?",
        default="llama2-70b",
        help="llama2-7b … llama2-70b, smoke, course, deep or a YAML file",
    )
    add("--gpus", type=_whole, metavar="N", help="default: the fewest that hold it")
    add("--gpu", default="a100-80gb", metavar="KIND", help="a100-80gb, h100-80gb, …")
    add("--mfu", type=_float, default=0.4, help="share of the GPUs' peak that is used")
    add("--json", action="store_true", help="numbers for programs (cria.scale.report)")
    add = command("findings", show_findings)
    add("ids", nargs="*", type=_whole, metavar="ID", help="none means all")
    settings(add, None, None)
    add("--json", action="store_true", help="one object a measure")
    add("--keep", action="store_true", help="move a run's values into data/results")
    add("--readme", action="store_true", help="renew the README's table")
    command("clean", clean)
    command("execute", execute, "none means all (for those who write them)")
    command("check", check, "none means all")
    return parser, made


def _parse(words: list[str]) -> argparse.Namespace:
    parser, commands = _parser()
    name = next((word for word in words if not word.startswith("-")), None)
    if name is not None and name not in commands:
        raise UsageError(names.unknown("command", name, commands))
    arguments, rest = parser.parse_known_args(words or ["--help"])
    for word in rest:
        options = commands[name]._option_string_actions if name else ()
        raise UsageError(names.unknown(f"option of cria {name}:", word, options))
    return arguments


def _config(profile: str):
    from cria import config

    return _understood(config.load, profile)


def _understood(function: Callable, *arguments: object):
    """Call a function for which a ValueError means that a name was mistyped."""
    try:
        return function(*arguments)
    except (ValueError, FileNotFoundError) as error:
        raise UsageError(str(error)) from error


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text} is not a whole number of 0 or more")
    return int(text)


def _float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None


def _aside(line: str) -> None:
    print(line, file=sys.stderr)


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


def _near(path: Path) -> Path:
    """A path as seen from here, where that is shorter."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


if __name__ == "__main__":
    sys.exit(main())
