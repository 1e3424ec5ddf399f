"""`cria.training.train`, for many processes: the same arguments, the same numbers.

    train(model, batches, loss_fn, optim, steps, group=group, out=folder)

Every process makes the whole batch and reads its own rows of it; FSDP2 adds the
gradients up. Batches, losses, AdamW, schedule, clipping, metrics and the way to go on
after a stop are those of `cria.training`; only who computes what is new.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from cria import resume
from cria.config import OptimConfig
from cria.optim import adamw, clip_, lr_at
from cria.progress import Progress
from cria.scale import keeping
from cria.scale.group import Group
from cria.training import (
    Batch,
    LossFn,
    TrainingError,
    _n_tokens,
    _seed_of,
    _weight,
)

__all__ = ["Stopped", "gradient", "my_parts", "train"]

SIGNALS = (signal.SIGTERM, signal.SIGINT)  # of a scheduler, of a person


class Stopped(Exception):
    """The run was asked to stop, and has saved."""


def my_parts(batch: Batch, group: Group, accumulate: int = 1) -> list[tuple]:
    """(rows, share) of the parts of a batch that this process reads.

    The rows are cut into size · accumulate parts, one after the other, and each
    process gets `accumulate` of them. share: the weight of the part's mean in the mean
    over the batch, by tokens to predict; all shares of all processes sum to 1.

    All must compute equally often, for they wait for each other. Where there are more
    parts than rows, the rest get the first row with share 0.
    """
    n_rows = len(next(iter(batch.values())))
    pieces = torch.arange(n_rows).tensor_split(group.size * accumulate)
    mine = pieces[group.rank * accumulate : (group.rank + 1) * accumulate]
    total = max(_weight(batch), 1)
    parts = []
    for rows in mine:
        index = rows if len(rows) else torch.tensor([0])
        part = {name: t[index] for name, t in batch.items()}
        parts.append((part, _weight(part) / total if len(rows) else 0.0))
    return parts


def gradient(
    model: nn.Module,
    batch: Batch,
    loss_fn: LossFn,
    group: Group,
    accumulate: int = 1,
) -> dict[str, float]:
    """Add the gradient of the whole batch's loss to the model; {"loss": …, **metrics}.

    model: dealt out (`sharding.shard`).  batch: the same in all processes.
    loss_fn(model, part) → (loss, metrics), means over the part's tokens of
    "loss_mask", or over its rows: so that the parts' means add up to the batch's.
    The sums that come back are those of the batch, in all processes.
    """
    sums: dict[str, float] = {"loss": 0.0}
    for part, share in my_parts(batch, group, accumulate):
        part = {name: t.to(group.device) for name, t in part.items()}
        loss, metrics = loss_fn(model, part)
        # FSDP takes the mean over the processes, where their sum is wanted.
        (loss * (share * group.size)).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * share
    return dict(zip(sums, group.sums(list(sums.values())), strict=True))


def train(
    model: nn.Module,
    batches: Callable[[int], dict[str, Tensor]],
    loss_fn: LossFn,
    optim: OptimConfig,
    steps: int,
    *,
    group: Group,
    out: Path | str | None = None,
    seed: int = 0,
    dtype: str = "float32",
    accumulate: int = 1,
    log_every: int = 10,
    checkpoint_every: int = 250,
    progress: bool = True,
    label: str = "training",
) -> list[dict]:
    """Train the dealt-out `model` for `steps` steps; the rows of metrics.csv.

    Arguments, metrics, files and errors are those of `cria.training.train`; `dtype` is
    the one that `shard` was given. A checkpoint (`keeping`) may be taken up with
    another number of processes. SIGTERM or Ctrl-C in any process: all finish the step,
    save, and raise `Stopped`.
    """
    counts = {"steps": steps, "accumulate": accumulate, "log_every": log_every}
    for name, value in (counts | {"checkpoint_every": checkpoint_every}).items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    optimizer = adamw(model, optim)
    state, run = resume.State(), {}
    if out is not None:
        out = Path(out)
        settings = {"steps": steps, "seed": seed, "accumulate": accumulate}
        run = resume.describe_run(model, optim, batches(0), settings | {"dtype": dtype})
        try:
            state = keeping.load(out, model, optimizer, run) or state
        except ValueError as error:
            raise TrainingError(str(error)) from None
        if group.chief:
            resume.write_csv(out, state.rows)
    saved, tokens_before = state.step, state.tokens
    silent = not (progress and group.chief)
    if saved and not silent:
        todo = "going on from there" if saved < steps else "nothing left to do"
        print(f"{label}: {saved} of {steps} steps are done, {todo}", flush=True)

    def save() -> None:
        nonlocal saved
        if out is not None and saved < state.step:
            keeping.save(out, model, optimizer, run, state, group)
            saved = state.step

    model.train()
    with (
        torch.random.fork_rng(devices=[]),
        _asked_to_stop() as asked,
        Progress(label, steps, done=saved, silent=silent) as lines,
    ):
        while state.step < steps:
            began = time.perf_counter()
            torch.default_generator.manual_seed(_seed_of(seed, state.step))
            batch = batches(state.step)
            lr = lr_at(state.step, optim, steps)
            for parameters in optimizer.param_groups:
                parameters["lr"] = lr
            metrics = gradient(model, batch, loss_fn, group, accumulate)
            metrics["grad_norm"] = clip_(model.parameters(), optim.grad_clip)
            for name in ("loss", "grad_norm"):
                if not math.isfinite(metrics[name]):
                    raise TrainingError(
                        f"{label}: {name} is {metrics[name]} at step {state.step + 1} "
                        f"of {steps} (batch {state.step}), so training stopped; try a "
                        "lower learning rate or a longer warm-up."
                    )
            optimizer.step()
            optimizer.zero_grad()
            state.add(metrics, _n_tokens(batch), time.perf_counter() - began)
            if state.step % log_every == 0 or state.step == steps:
                state.log(lr)
                if out is not None and group.chief:
                    resume.append_csv(out, state.rows)
            lines.step(
                state.step,
                f"loss {metrics['loss']:.3f}",
                f"lr {lr:.1e}",
                tokens=state.tokens - tokens_before,
            )
            # One process may have been asked and another not: they decide together.
            stop = group.sums([asked.is_set()])[0] > 0 and state.step < steps
            if stop or state.step % checkpoint_every == 0 or state.step == steps:
                save()
            if stop:
                raise Stopped(
                    f"{label} stopped after step {state.step} of {steps}; "
                    + ("run it again to go on from there." if out else "not saved.")
                )
    return state.rows


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM and Ctrl-C set while it lasts."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked  # only the main thread may handle signals
        return
    before = {s: signal.signal(s, lambda *_: asked.set()) for s in SIGNALS}
    try:
        yield asked
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)
