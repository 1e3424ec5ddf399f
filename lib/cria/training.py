"""The one training loop: every stage of the recipe goes through `train`.

    train(model, batches, loss_fn, optim, steps, out=folder)

`batches(step)` and the random numbers of a step depend on nothing but the step and
the seed. So a run that was killed takes up its last checkpoint and ends, bit for
bit, where it would have ended anyway (on the same machine, with as many threads).
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cria import resume
from cria.config import OptimConfig
from cria.optim import adamw, clip_, lr_at
from cria.progress import Progress

__all__ = ["TrainingError", "lm_loss", "pick_dtype", "train"]

Batch = dict[str, Tensor]  # the first dimension of every tensor counts the rows
LossFn = Callable[[nn.Module, Batch], tuple[Tensor, dict[str, float]]]


class TrainingError(ValueError):
    """Training cannot go on; the message says where and what to do."""


def lm_loss(logits: Tensor, ids: Tensor, loss_mask: Tensor) -> Tensor:
    """Next-token cross entropy in nats, the mean over the tokens of the mask.

    logits (B, T, V) float; ids (B, T) int; loss_mask (B, T) bool, True where token
    t, seen through the logits at t − 1, counts. Zero if nothing counts.
    """
    targets = ids.masked_fill(~loss_mask, -100)  # -100: cross_entropy leaves it out
    targets = F.pad(targets[:, 1:], (0, 1), value=-100)  # logits at t foretell t + 1
    total = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    return total / (targets != -100).sum().clamp(min=1)


def pick_dtype(dtype: str) -> torch.dtype:
    """The type of the matrix products: "float32", "bfloat16" or "auto".

    "auto" is bfloat16 where this CPU multiplies it in hardware (AVX512-BF16 or AMX),
    else float32. Weights, their sums and the optimizer stay float32 in any case.
    """
    if dtype == "auto":
        cpu = getattr(torch.cpu, "get_capabilities", dict)()
        fast = cpu.get("avx512_bf16") or cpu.get("amx_bf16")
        return torch.bfloat16 if fast else torch.float32
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype is {dtype!r}; use "float32", "bfloat16" or "auto".')
    return getattr(torch, dtype)


def train(
    model: nn.Module,
    batches: Callable[[int], Batch],
    loss_fn: LossFn,
    optim: OptimConfig,
    steps: int,
    *,
    out: Path | str | None = None,
    seed: int = 0,
    dtype: str = "auto",
    accumulate: int = 1,
    log_every: int = 10,
    checkpoint_every: int = 250,
    progress: bool = True,
    label: str = "training",
) -> list[dict]:
    """Train `model` in place for `steps` steps; return the rows of metrics.csv.

    `batches(step)` gives the batch of a step, from 0. `loss_fn(model, batch)` gives
    (loss, metrics): the loss a mean over the tokens of batch["loss_mask"], or over
    rows where there is none. `accumulate` cuts each batch into so many parts, which
    need less memory and give the same gradient.

    A row holds, for the last `log_every` steps: the step it ends with, mean loss and
    metrics, lr, mean gradient norm before clipping, tokens so far, tokens a second,
    seconds so far (saving not counted).

    With `out`, metrics.csv and a checkpoint (every `checkpoint_every` steps, and at
    the end) go there, and a later call with the same arguments goes on from it.
    Ctrl-C finishes the step, saves and raises KeyboardInterrupt. A loss that is not
    finite, or a checkpoint of another run, is a `TrainingError`.
    """
    counts = {"steps": steps, "accumulate": accumulate, "log_every": log_every}
    for name, value in (counts | {"checkpoint_every": checkpoint_every}).items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1.")
    dtype = pick_dtype(dtype)
    optimizer = adamw(model, optim)
    state, run = resume.State(), None
    if out is not None:
        out = Path(out)
        settings = {"steps": steps, "seed": seed, "accumulate": accumulate}
        settings["dtype"] = str(dtype).removeprefix("torch.")
        run = resume.describe_run(model, optim, batches(0), settings)
        try:
            state = resume.load(out, model, optimizer, run) or state
        except ValueError as error:
            raise TrainingError(str(error)) from None
        resume.write_csv(out, state.rows)
    saved, tokens_before = state.step, state.tokens
    if saved and progress:
        todo = "going on from there" if saved < steps else "nothing left to do"
        print(f"{label}: {saved} of {steps} steps are done, {todo}", flush=True)

    def save() -> None:
        nonlocal saved
        if out is not None and saved < state.step:
            resume.save(out, model, optimizer, run, state)
            saved = state.step

    model.train()
    with (
        torch.random.fork_rng(devices=[]),  # the caller's random numbers stay theirs
        _ctrl_c() as stop,
        Progress(label, steps, done=saved, silent=not progress) as lines,
    ):
        while state.step < steps:
            began = time.perf_counter()
            torch.default_generator.manual_seed(_seed_of(seed, state.step))
            batch = batches(state.step)
            lr = lr_at(state.step, optim, steps)
            for group in optimizer.param_groups:
                group["lr"] = lr
            metrics = _gradient(model, batch, loss_fn, dtype, accumulate)
            metrics["grad_norm"] = clip_(model.parameters(), optim.grad_clip)
            for name in ("loss", "grad_norm"):
                if not math.isfinite(metrics[name]):
                    optimizer.zero_grad()
                    raise TrainingError(
                        f"{label}: {name} is {metrics[name]} at step {state.step + 1} "
                        f"of {steps} (batch {state.step}), so training stopped with "
                        f"the weights before that step{_kept(out, saved)}; try a "
                        "lower learning rate or a longer warm-up."
                    )
            optimizer.step()
            optimizer.zero_grad()
            state.add(metrics, _n_tokens(batch), time.perf_counter() - began)
            if state.step % log_every == 0 or state.step == steps:
                state.log(lr)
                if out is not None:
                    resume.append_csv(out, state.rows)
            lines.step(
                state.step,
                f"loss {metrics['loss']:.3f}",
                f"lr {lr:.1e}",
                tokens=state.tokens - tokens_before,
            )
            if state.step % checkpoint_every == 0 or state.step == steps:
                save()
            if stop.is_set() and state.step < steps:
                save()
                raise KeyboardInterrupt(
                    f"{label} stopped after step {state.step} of {steps}; "
                    + ("run it again to go on from there." if out else "not saved.")
                )
    return state.rows


def _gradient(model, batch: Batch, loss_fn: LossFn, dtype, accumulate: int) -> dict:
    """Add the gradient of the batch's loss; return {"loss": …, **metrics}.

    A part weighs as much as it has tokens to predict. The mean of the parts' means
    would not do: tokens in a part with few of them would count for more.
    """
    whole = _weight(batch)
    sums: dict[str, float] = {"loss": 0.0}
    n_rows = len(next(iter(batch.values())))
    for rows in torch.arange(n_rows).chunk(accumulate):
        part = batch
        if accumulate > 1:
            part = {name: t[rows[0] : rows[-1] + 1] for name, t in batch.items()}
        share = _weight(part) / max(whole, 1)
        with torch.autocast("cpu", torch.bfloat16, dtype is torch.bfloat16):
            loss, metrics = loss_fn(model, part)
        (loss * share).backward()
        for name, value in {"loss": loss.detach(), **metrics}.items():
            sums[name] = sums.get(name, 0.0) + float(value) * share
    return sums


def _weight(batch: Batch) -> int:
    mask = batch.get("loss_mask")
    return len(next(iter(batch.values()))) if mask is None else int(mask.sum())


def _n_tokens(batch: Batch) -> int:
    """Tokens that are not padding."""
    for who in ("doc_ids", "branches"):  # either marks padding by a negative number
        if who in batch:
            return int((batch[who] >= 0).sum())
    return batch["ids"].numel() if "ids" in batch else 0


def _seed_of(seed: int, step: int) -> int:
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0])


def _kept(out: Path | None, saved: int) -> str:
    return f" and the checkpoint of step {saved} untouched" if out and saved else ""


@contextlib.contextmanager
def _ctrl_c() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that no step is left half done.

    A second Ctrl-C stops at once. Handlers that others installed are left alone.
    """
    stop = threading.Event()
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield stop
        return

    def ask(signum, frame):
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
