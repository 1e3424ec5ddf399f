"""What a training run keeps on disk: metrics.csv, and the checkpoint to resume from.

The checkpoint is one safetensors file with weights and optimizer state as tensors
and all the rest as JSON in its header. One file is either the old or the new one:
there is no moment when weights and step number disagree.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from cria.config import OptimConfig

__all__ = [
    "CHECKPOINT",
    "METRICS",
    "State",
    "append_csv",
    "describe_run",
    "load",
    "save",
    "write_csv",
]

CHECKPOINT = "training.safetensors"
METRICS = "metrics.csv"
FORMAT = "cria training checkpoint"


@dataclass
class State:
    """How far a run has come."""

    step: int = 0  # steps done
    tokens: int = 0  # seen so far
    seconds: float = 0.0  # spent on steps
    window: list[dict] = field(default_factory=list)  # steps since the last row
    rows: list[dict] = field(default_factory=list)  # of metrics.csv

    def add(self, metrics: dict[str, float], tokens: int, seconds: float) -> None:
        """One more step is done."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds
        self.window.append({**metrics, "tokens": tokens, "seconds": seconds})

    def log(self, lr: float) -> None:
        """Sum up the steps since the last row in a new one."""
        sums: dict[str, float] = {}
        counts: dict[str, int] = {}
        for metrics in self.window:
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
                counts[name] = counts.get(name, 0) + 1
        tokens, seconds = sums.pop("tokens"), sums.pop("seconds")
        means = {name: total / counts[name] for name, total in sums.items()}
        row = {"step": self.step, **means, "lr": lr, "tokens": self.tokens}
        row |= {"tokens_per_s": tokens / seconds, "seconds": self.seconds}
        self.rows.append(row)
        self.window = []


def describe_run(
    model: nn.Module,
    optim: OptimConfig,
    first_batch: dict[str, Tensor],
    settings: dict[str, object],
) -> dict[str, object]:
    """What must be equal for two calls to be the same run, as plain JSON values."""
    shapes = [(name, list(t.shape)) for name, t in model.state_dict().items()]
    data = hashlib.sha256()
    for name, t in sorted(first_batch.items()):
        data.update(f"{name} {t.dtype} {tuple(t.shape)}".encode())
        data.update(t.contiguous().numpy().tobytes())
    run = {
        **settings,
        **{f"optim.{name}": value for name, value in asdict(optim).items()},
        "the model's shapes": hashlib.sha256(repr(shapes).encode()).hexdigest()[:12],
        "the first batch": data.hexdigest()[:12],
    }
    return json.loads(json.dumps(run))


def save(
    out: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    run: dict,
    state: State,
) -> None:
    """Replace the checkpoint in `out`, atomically."""
    tensors = {f"model.{name}": t for name, t in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optim.{index}.{name}": t for name, t in moments.items()}
    tensors = {name: t.detach().contiguous() for name, t in tensors.items()}
    header = {
        "format": FORMAT,
        "run": json.dumps(run),
        "state": json.dumps(asdict(state)),
    }
    unfinished = out / f".{CHECKPOINT}.unfinished"
    # Not safetensors' save_file: killed at it, that leaves a stray file behind.
    with open(unfinished, "wb") as file:
        file.write(serialize(tensors, header))
        file.flush()
        os.fsync(file.fileno())  # the bytes first, then the name that points to them
    os.replace(unfinished, out / CHECKPOINT)
    folder = os.open(out, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name survives a power cut as well
    finally:
        os.close(folder)


def load(
    out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run: dict
) -> State | None:
    """Fill model and optimizer from the checkpoint in `out`; None if there is none.

    Raises ValueError if it is damaged or belongs to another run; model and optimizer
    are then unchanged.
    """
    path = out / CHECKPOINT
    if not path.exists():
        return None
    advice = "delete it to start afresh, or give this run a folder of its own."
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}): {advice}") from None
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of Cria's training: {advice}")
    theirs = json.loads(header["run"])
    for name in run | theirs:
        if theirs.get(name) != run.get(name):
            raise ValueError(
                f"{path} belongs to another run ({name}: {theirs.get(name)} there, "
                f"{run.get(name)} here): {advice}"
            )
    moments: dict[int, dict[str, Tensor]] = {}
    weights = {}
    for name, t in tensors.items():
        kind, rest = name.split(".", 1)
        if kind == "model":
            weights[rest] = t
        else:
            index, moment = rest.split(".")
            moments.setdefault(int(index), {})[moment] = t
    model.load_state_dict(weights)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return State(**json.loads(header["state"]))


def write_csv(out: Path, rows: list[dict]) -> None:
    """Write metrics.csv whole: rows that came after the checkpoint are gone."""
    out.mkdir(parents=True, exist_ok=True)
    unfinished = out / f".{METRICS}.unfinished"
    with open(unfinished, "w", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in rows for name in row)
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, out / METRICS)


def append_csv(out: Path, rows: list[dict]) -> None:
    """Add the newest row to metrics.csv, or write it whole if a column is new."""
    *earlier, newest = rows
    if not earlier or any(name not in earlier[0] for name in newest):
        write_csv(out, rows)
        return
    with open(out / METRICS, "a", newline="", encoding="utf-8") as file:
        columns = dict.fromkeys(name for row in earlier for name in row)
        csv.DictWriter(file, columns).writerow(newest)
