"""Independent jobs in processes of their own, one core each.

Two small training runs on one core each finish sooner than one after the other on
two cores, because matrices this small do not divide well.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait

SAY_EVERY = 10.0  # seconds between two lasting lines
POLITE = 10  # a job's nice value: where cores are short, others get far more of them


def run(
    function: Callable,
    jobs: Mapping[str, dict],
    *,
    workers: int | None = None,
    progress: bool = True,
) -> dict:
    """``function(**arguments)`` for every job, {name: arguments} → {name: result}.

    At most ``workers`` at once (default: one a core, and no more than there are
    jobs). The function must live in a module, and it and its arguments must be
    picklable. The first error ends the rest and is raised here. Results do not
    depend on the number of workers: each job has one thread. Jobs give way to all else
    that runs here: beside them `cria.ahead` may build a stage that many wait for.
    """
    if not jobs:
        return {}
    workers = min(workers or os.cpu_count() or 1, len(jobs))
    began = said = time.perf_counter()
    # A forked copy of a process that has used torch can hang: start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_alone) as pool:
        waiting = {pool.submit(function, **kw): name for name, kw in jobs.items()}
        results = {}
        try:
            while waiting:
                done, _ = wait(waiting, SAY_EVERY, return_when=FIRST_COMPLETED)
                for job in done:
                    results[waiting.pop(job)] = job.result()
                now = time.perf_counter()
                if progress and (done or now - said >= SAY_EVERY):
                    said = now
                    left = ", ".join(waiting.values()) or "none"
                    print(
                        f"{len(results)} of {len(jobs)} runs done after "
                        f"{now - began:.0f} s; to come: {left}",
                        flush=True,
                    )
        except BaseException:
            processes = list(pool._processes.values())  # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise
    return {name: results[name] for name in jobs}


def _alone() -> None:
    import torch

    torch.set_num_threads(1)
    if hasattr(os, "nice"):  # not on Windows
        os.nice(POLITE)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """A worker whose notebook was killed would go on for minutes: end it."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
