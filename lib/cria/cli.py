"""The command line: `cria run`, `cria chat`, `cria findings`, `cria clean`, …

What a command needs is imported when it runs, so that `cria --help` is quick.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence

from cria import names
from cria.cli_course import execute, record, run
from cria.cli_models import chat, export, plan
from cria.cli_usage import (
    UsageError,
    config_of,
    count,
    number,
    several,
    understood,
    whole,
)


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


def show_findings(arguments: argparse.Namespace) -> None:
    """Print the ledger, or write its recorded part."""
    from cria import findings, scoreboard

    if arguments.keep:
        profile = config_of(arguments.profile or "course").profile
        kept = findings.keep(arguments.ids or None, profile, arguments.seed or 0)
        print(f"Kept {profile}, seed {arguments.seed or 0}, of findings {kept}.")
    elif arguments.readme:
        print(
            "The README is up to date." if not findings.write_readme() else "Written."
        )
    else:
        ids = arguments.ids or None
        profile = config_of(arguments.profile).profile if arguments.profile else None
        rows = understood(findings.table, ids, profile, arguments.seed)
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


def check(arguments: argparse.Namespace) -> int:
    """Do the notebooks' saved outputs belong to their code?"""
    from cria import notebooks

    paths = understood(notebooks.find, arguments.notebooks)
    faults = [fault for path in paths for fault in notebooks.faults(path)]
    print("\n".join(faults) or f"{count(len(paths), 'notebook')}, all as executed.")
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
        add("--seed", type=whole, default=seed, help="a whole number")

    add = command("run", run, "03, 03_pretrain or a path; none means all")
    settings(add, "course", 0)
    add("--out", metavar="FOLDER", help="for the executed copies (build/notebooks)")
    add = command("chat", chat)
    add(
        "target", nargs="?", metavar="STAGE|PATH", help="default: the newest chat model"
    )
    settings(add, "course", 0)
    add("--prompt", metavar="TEXT", help="one question, then end")
    add("--temperature", type=number, default=0.0, help="0: the likeliest token")
    add("--top-p", type=number, default=1.0, help="sample from this share of mass")
    add("--max-new-tokens", type=whole, default=64, metavar="N")
    spoken = "of a checkpoint by path; default: what its folder says"
    add("--format", choices=("chat", "text"), help=spoken)
    add = command("export", export)
    add("target", metavar="STAGE|PATH", help="also Meta's and Hugging Face's folders")
    add("out", metavar="FOLDER", help="a new one")
    settings(add, "course", 0)
    kinds = ("float32", "bfloat16", "float16")
    add("--dtype", choices=kinds, help="of the new files; default: as stored")
    add("--format", choices=("chat", "text"), help="with a chat template, or without")
    add("--shard-gb", type=number, default=5.0, metavar="GB", help="largest file (5)")
    add = command("plan", plan)
    add(
        "profile",
        nargs="?",
        default="llama2-70b",
        help="llama2-7b … llama2-70b, smoke, course, deep or a YAML file",
    )
    add("--gpus", type=whole, metavar="N", help="default: the fewest that hold it")
    add("--gpu", default="a100-80gb", metavar="KIND", help="a100-80gb, h100-80gb, …")
    add("--mfu", type=number, default=0.4, help="share of the GPUs' peak that is used")
    add("--json", action="store_true", help="numbers for programs (cria.scale.report)")
    add = command("findings", show_findings)
    add("ids", nargs="*", type=whole, metavar="ID", help="none means all")
    settings(add, None, None)
    add("--json", action="store_true", help="one object a measure")
    add("--keep", action="store_true", help="move a run's values into data/results")
    add("--readme", action="store_true", help="renew the README's table")
    add = command("record", record)
    add("ids", nargs="*", type=whole, metavar="ID", help="none means all")
    add("--profile", default="course", help="course, deep or a YAML file")
    add("--seeds", type=several, default=[*range(5)], help="0-4 or 0,2,5 (0-4)")
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


if __name__ == "__main__":
    sys.exit(main())
