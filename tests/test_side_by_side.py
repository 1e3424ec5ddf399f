"""Jobs in processes of their own: all come back, under their own names, alone."""

import math
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cria import side_by_side

# What a job runs must live in a module that a fresh process can import: this one.


def total(numbers):
    return math.fsum(numbers)


def whoami():
    import torch

    time.sleep(1)  # so that the other worker has to take the other job
    return os.getpid(), torch.get_num_threads()


def manners():
    return os.nice(0)


def gaussian(seed):
    import torch

    return float(torch.randn((), generator=torch.Generator().manual_seed(seed)))


def divide_or_sleep(by):
    if by:
        time.sleep(120)
    return 1 / by


def test_results_bear_their_names_in_the_order_of_the_jobs(capsys):
    jobs = {"ten": [1, 9], "five": [2, 3], "six": [6]}
    arguments = {name: {"numbers": numbers} for name, numbers in jobs.items()}
    got = side_by_side.run(total, arguments, workers=2)
    assert list(got.items()) == [("ten", 10.0), ("five", 5.0), ("six", 6.0)]
    last = capsys.readouterr().out.splitlines()[-1]
    assert "3 of 3 runs done" in last and "to come: none" in last


def test_each_worker_is_a_process_of_its_own_with_one_thread():
    got = side_by_side.run(whoami, {"a": {}, "b": {}}, workers=2, progress=False)
    (first, threads), (second, others) = got.values()
    assert len({first, second, os.getpid()}) == 3
    assert threads == others == 1


@pytest.mark.skipif(not hasattr(os, "nice"), reason="Windows knows no nice values")
def test_jobs_have_a_nice_value_higher_than_ours():
    here = os.nice(0)
    got = side_by_side.run(manners, {"a": {}}, progress=False)
    assert got["a"] == min(here + side_by_side.POLITE, 19) and os.nice(0) == here


def test_the_number_of_workers_does_not_change_the_results():
    jobs = {str(seed): {"seed": seed} for seed in range(3)}
    alone = side_by_side.run(gaussian, jobs, workers=1, progress=False)
    assert alone == side_by_side.run(gaussian, jobs, workers=2, progress=False)
    assert len(set(alone.values())) == 3


def test_the_first_error_is_raised_and_ends_the_rest():
    jobs = {"slow": {"by": 1}, "bad": {"by": 0}}
    began = time.perf_counter()
    with pytest.raises(ZeroDivisionError):
        side_by_side.run(divide_or_sleep, jobs, workers=2)
    assert time.perf_counter() - began < 60  # the slow one sleeps for two minutes


def test_no_jobs_no_results():
    assert side_by_side.run(print, {}) == {}


def test_workers_end_when_the_one_who_waits_is_killed(tmp_path):
    started = tmp_path / "started"
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import test_side_by_side as t\n"
        "if __name__ == '__main__':\n"
        "    t.side_by_side.run(t.sleeper, {'a': {'path': sys.argv[2]}})\n"
    )
    script = tmp_path / "main.py"
    script.write_text(code)
    here = str(Path(__file__).parent)
    child = subprocess.Popen([sys.executable, script, here, started])
    worker = _when(lambda: started.exists() and started.read_text())
    child.kill()
    child.wait()
    _when(lambda: not _alive(int(worker)))


def sleeper(path):
    Path(path).write_text(str(os.getpid()))
    time.sleep(60)


def _when(condition, seconds=30):
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
    return value


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
