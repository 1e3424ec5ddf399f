"""Which settings a finding rests on: those that its notebook and its stages read.

Seeds are averaged only if these agree. A knob of Ghost Attention, say, does not make
the recorded seeds of grouped-query attention worthless.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from cria import config as configs
from cria import fingerprint, notebooks, stages
from cria.stage_table import STAGES

ABSENT = object()


def parts(path: Path) -> tuple[str, ...] | None:
    """The parts of the config that a notebook's numbers may depend on.

    "profile"; what its stages and theirs are built from ("reward", or a single knob,
    "ppo.safety_gate"); and what its cells read as `config.…`. None: the notebook is
    not there or was never executed, so nobody knows.
    """
    if not path.is_file() or not notebooks.stamped(path):
        return None
    built = stages.upstream(notebooks.needs(path))
    found = {"profile", *_in_cells(path)}
    found |= {part for name in built for part in STAGES[name].sections}
    # a single knob says nothing new beside its whole section
    return tuple(
        sorted(p for p in found if "." not in p or p.split(".")[0] not in found)
    )


def differing(old: dict, new: dict, parts: Iterable[str] | None) -> list[str]:
    """The parts in which two configs, as plain dicts, differ; None means all."""
    parts = dict.fromkeys([*old, *new]) if parts is None else parts
    return [part for part in parts if _of(old, part) != _of(new, part)]


def _in_cells(path: Path) -> set[str]:
    """`config.sft` in the code as "sft", `config.sft.epochs` as "sft.epochs"."""
    known = fingerprint.plain(configs.load("course"))
    code = [c.source for c in notebooks.read(path).cells if c.cell_type == "code"]
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell))]
    inner = {id(node.value) for node in nodes if isinstance(node, ast.Attribute)}
    found = set()
    for node in nodes:
        if isinstance(node, ast.Attribute) and id(node) not in inner:
            name, *read = ast.unparse(node).split(".")
            part = ".".join(read[:2])
            dotted = all(word.isidentifier() for word in read)  # else: seen inside
            if name == "config" and dotted and read[0] in known:
                # what is no knob is computed from the section: config.model.n_params
                found.add(part if _of(known, part) is not ABSENT else read[0])
    return found


def _of(config: object, part: str) -> object:
    for name in part.split("."):
        config = config.get(name, ABSENT) if isinstance(config, dict) else ABSENT
    return config
