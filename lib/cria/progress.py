"""A bar for now, and a printed line every few seconds for later."""

from __future__ import annotations

import sys
import time

from tqdm.auto import tqdm

__all__ = ["Progress"]

SAY_EVERY = 5.0  # seconds between two lasting lines


class Progress:
    """Shows how far a run of `total` steps has come, `done` of them beforehand.

        with Progress("pretrain", total=100) as progress:
            progress.step(1, "loss 6.931")

    The bar needs a terminal or a notebook; a log file gets the lines alone. A
    notebook's saved copy keeps the lines and loses the bar.
    """

    def __init__(self, label: str, total: int, done: int = 0, silent: bool = False):
        self.label, self.total, self.before = label, total, done
        self.silent = silent
        shown = not silent and ("ipykernel" in sys.modules or sys.stderr.isatty())
        self.bar = tqdm(
            total=total, initial=done, desc=label, disable=not shown, leave=False
        )
        self.began = self.said = time.perf_counter()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_) -> None:
        self.bar.close()

    def step(self, done: int, *words: str, tokens: int = 0) -> None:
        """`done` steps are behind us, and `tokens` since we began."""
        if self.silent:
            return
        self.bar.update(1)
        now = time.perf_counter()
        if now - self.said < SAY_EVERY and done < self.total:
            return
        gone, self.said = now - self.began, now
        a_step = gone / (done - self.before)
        pace = f"{tokens / gone:,.0f} tokens/s" if tokens else f"{a_step:.2f} s/step"
        ends = (
            f"{tqdm.format_interval(gone)} gone",
            f"{tqdm.format_interval(a_step * (self.total - done))} left",
        )
        line = "  ".join((f"step {done}/{self.total}", *words, pace, *ends))
        self.bar.write(f"{self.label}: {line}")
