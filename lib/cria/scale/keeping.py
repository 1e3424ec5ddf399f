"""Checkpoints of a dealt-out run: every process writes its rows, any number reads them.

    out/step-00000250/shard-0000N-….safetensors    weights and AdamW, cut by process
    out/step-00000250/run.json                     which run it is, and how far it is

torch's distributed checkpoint (DCP) finds the pieces that a process needs, also when
the next run has more or fewer processes. Its safetensors files hold no pickle. All
processes must see the same folder.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn

from cria.checkpoint_files import read_json
from cria.provenance import write_json
from cria.resume import State
from cria.scale.group import Group

__all__ = ["load", "newest", "save", "step_of"]

FORMAT = "cria sharded checkpoint"
RUN = "run.json"
STEP = re.compile(r"step-(\d{8})")


def newest(out: Path) -> Path | None:
    """The folder of the last checkpoint in ``out``; None if there is none.

    A folder has that name only when it is whole.
    """
    found = [p for p in Path(out).glob("step-*") if STEP.fullmatch(p.name)]
    return max(found, default=None)


def step_of(checkpoint: Path) -> int:
    """The steps that were done when it was written."""
    return int(STEP.fullmatch(checkpoint.name)[1])


def save(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: dict,
    state: State,
    group: Group,
) -> None:
    """Write the checkpoint of this step, then delete the one before.

    All processes must call it. One killed in between leaves the one before.
    """
    unfinished, done = out / ".step.unfinished", out / f"step-{state.step:08d}"
    if group.chief:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
    group.wait()
    writer = dcp.HuggingFaceStorageWriter(str(unfinished), save_distributed=True)
    with _quiet():
        dcp.save(_tensors(model, optimizer), storage_writer=writer)
    group.wait()
    if group.chief:
        words = {"format": FORMAT, "processes": group.size, "run": run}
        write_json(unfinished / RUN, words | {"state": asdict(state)})
        os.replace(unfinished, done)
        for old in out.glob("step-*"):
            if old != done and STEP.fullmatch(old.name):
                shutil.rmtree(old)
    group.wait()


def load(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: dict,
) -> State | None:
    """Fill model and optimizer from the newest checkpoint; None if there is none.

    Raises ValueError if it is damaged or belongs to another run.
    """
    path = newest(out)
    if path is None:
        return None
    advice = "delete it to start afresh, or give this run a folder of its own."
    if not (path / RUN).is_file() or not list(path.glob("*.safetensors")):
        raise ValueError(f"{path} lacks files: {advice}")
    words = read_json(path / RUN)
    if words.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of Cria's training: {advice}")
    theirs = words["run"]
    for name in run | theirs:
        if theirs.get(name) != run.get(name):
            raise ValueError(
                f"{path} belongs to another run ({name}: {theirs.get(name)} there, "
                f"{run.get(name)} here): {advice}"
            )
    reader = dcp.HuggingFaceStorageReader(str(path))
    try:
        with _quiet():
            _begin(model, optimizer, set(reader.read_metadata().state_dict_metadata))
            dcp.load(_tensors(model, optimizer), storage_reader=reader)
    except Exception as error:  # DCP wraps what each process met in one of its own
        first = str(error).strip().splitlines()[-1]
        raise ValueError(f"{path} cannot be read ({first}): {advice}") from error
    return State(**words["state"])


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All that is saved, by name; loading writes into the same tensors."""
    found = {}
    for name, p in model.named_parameters():
        found[f"model.{name}"] = p.detach()
        for moment, t in optimizer.state.get(p, {}).items():
            found[f"optim.{name}.{moment}"] = t
    return found


def _begin(model: nn.Module, optimizer: torch.optim.Optimizer, kept: set[str]) -> None:
    """Give AdamW the state that it makes in its first step, to be overwritten.

    A weight that never had a gradient has none (the output matrix of a reward model).
    """
    for name, p in model.named_parameters():
        if f"optim.{name}.step" in kept:
            optimizer.state[p] = {
                "step": torch.zeros((), device=p.device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """DCP tells of each file that it reads: for people that is noise."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
