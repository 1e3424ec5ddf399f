"""Notebooks run several at a time: they overlap, stop together, leave nothing half."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cria import notebook_times, notebooks, stages, together

ROOT = Path(__file__).resolve().parents[1]
CLAIM = """
- {id: 1, says: Up is up., paper: "Yes.", section: "2", notebook: 02_toy,
   measures: [{name: gain, what: the gain, unit: share, expect: "> 0"}]}
"""
MEET = """
import pathlib, time
pathlib.Path("{me}.here").touch()
end = time.monotonic() + 60
while not pathlib.Path("{other}.here").exists():
    assert time.monotonic() < end, "{me} waited in vain"
    time.sleep(0.02)
"""
SLOW = """
import os, time
open("slow", "w").write(str(os.getpid()))
time.sleep(120)
"""


def write(house, name, *code, seconds=None):
    parameters = new_code_cell('profile = "course"\nseed = 0')
    parameters.metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, code)])
    notebook.metadata["kernelspec"] = dict(notebooks.KERNEL)
    if seconds:
        notebook.metadata["cria"] = {"seconds": seconds}
    path = house / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def house(tmp_path, monkeypatch):
    for folder in ("data", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/findings.yaml").write_text(CLAIM)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(paths, house, workers=2, watch=lambda state: None):
    parameters = {"profile": "course", "seed": 7}
    together.run(paths, house / "out", parameters, workers=workers, watch=watch)


def text(path):
    return notebooks.read(path).cells[-1].outputs[0].text


def test_two_run_at_once_with_one_thread_each_and_all_are_told_of(house):
    """They wait for each other to begin: one after the other, they would fail."""
    threads = 'import os\nprint(os.environ["OMP_NUM_THREADS"], seed)'
    paths = [
        write(house, "01_toy", MEET.format(me=1, other=2), threads),
        write(house, "02_toy", MEET.format(me=2, other=1), threads),
    ]
    seen = []
    run(paths, house, watch=seen.append)
    copies = sorted((house / "out").iterdir())
    assert [copy.name for copy in copies] == ["01_toy.ipynb", "02_toy.ipynb"]
    assert [text(copy) for copy in copies] == ["1 7\n", "1 7\n"]
    assert max(len(state.running) for state in seen) == 2
    assert [s.done for s in seen if s.ran] == [1, 2] and seen[-1].total == 2
    assert {s.ran[0] for s in seen if s.ran} == set(paths)
    cells = [at.cell for s in seen for at in s.running.values() if at]
    assert cells and max(cells) <= 4


def test_a_failing_cell_is_one_sentence_and_stops_the_others(house):
    wait = MEET.format(me=1, other=2)
    paths = [
        write(house, "01_toy", wait, "raise KeyError('no such llama')"),
        write(house, "02_toy", MEET.format(me=2, other=1), SLOW),
        write(house, "03_toy", "print('never')"),
    ]
    begun = time.monotonic()
    with pytest.raises(notebooks.NotebookError) as error:
        run(paths, house)
    assert str(error.value) == "01_toy stopped in cell 4: KeyError: 'no such llama'"
    assert "no such llama" in error.value.traceback
    assert time.monotonic() - begun < 100
    # the failing copy is there, to be looked at, and nothing else
    assert [copy.name for copy in (house / "out").iterdir()] == ["01_toy.ipynb"]


def test_a_missing_parameter_is_refused_as_before(house):
    paths = [write(house, f"0{i}_toy") for i in (1, 2)]
    with pytest.raises(ValueError, match="has no parameter other"):
        together.run(paths, house / "out", {"other": 1}, workers=2)


def plan(paths):
    jobs = [together.Job(p, p, together._before(p, paths)) for p in paths]
    return together._Plan(jobs, {"profile": "course"})


def test_the_longest_comes_first_and_a_scoreboard_after_what_it_shows(house):
    shows = "board = findings.show(None, config, seed)"
    paths = [
        write(house, "01_toy", seconds=5),
        write(house, "02_toy", seconds=20),  # records finding 1
        write(house, "03_toy", seconds=60),
        write(house, "04_toy", shows, seconds=90),
    ]
    p = plan(paths)
    first = [p.next().path.stem for _ in range(3)]
    assert first == ["02_toy", "03_toy", "01_toy"]  # 02 holds 04 up
    assert p.next() is None
    p.finished("02_toy", 20)
    assert p.next().path.stem == "04_toy" and not p.waiting
    assert together._before(paths[3], paths[2:]) == frozenset()


def test_one_core_runs_them_in_order_in_this_process(house):
    mine = f"import os\nassert os.getppid() == {os.getpid()}"
    paths = [write(house, f"0{i}_toy", mine, seconds=i) for i in (1, 2)]
    seen = []
    run(paths, house, workers=1, watch=seen.append)
    assert [s.ran[0].stem for s in seen if s.ran] == ["01_toy", "02_toy"]
    assert [s.done for s in seen if s.ran] == [1, 2]
    assert seen[-1].left == 0 and max(s.left for s in seen) > 0


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from cria import cli, crew, stages
if __name__ == "__main__":
    stages.ROOT, crew.cores = Path({house!r}), lambda: 2
    sys.exit(cli.main(["run"]))
"""


def test_ctrl_c_stops_all_and_leaves_no_half_written_copy(house):
    write(house, "01_toy", SLOW)
    write(house, "02_toy", "print('quick')")
    old = house / "build/notebooks/01_toy.ipynb"
    old.parent.mkdir(parents=True)
    old.write_text("the copy of last time")
    script = house / "parent.py"
    script.write_text(PARENT.format(house=str(house)))
    lib = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, str(script)],
        env={**os.environ, "PYTHONPATH": lib},
        stdout=subprocess.PIPE,
        text=True,
    )
    slow, quick = house / "notebooks/slow", old.with_name("02_toy.ipynb")
    wait_for(lambda: slow.exists() and slow.read_text() and quick.exists())
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=90)
    assert child.returncode == 130 and "the same command goes on" in out
    assert "[1/2] 02_toy done" in out
    wait_for(lambda: not alive(int(slow.read_text())))
    assert sorted(f.name for f in old.parent.iterdir()) == [old.name, quick.name]
    assert old.read_text() == "the copy of last time"


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not get that far"
        time.sleep(0.02)


def test_the_shortest_run_of_todays_code_is_kept(house):
    path = write(house, "01_toy", "x = 1", seconds=50)
    assert notebook_times.read([path]) == {"01_toy": 50}  # the stamp, for want of more
    for seconds, kept in ((20, 20), (30, 20), (9, 9)):
        notebook_times.renew(path, seconds)
        assert notebook_times.read([path]) == {"01_toy": kept}
    write(house, "01_toy", "x = 1", "y = 2")
    notebook_times.renew(path, 40)  # other code: it may well take longer
    assert json.loads(notebook_times.path().read_text())["01_toy"]["seconds"] == 40
    notebook_times.path().write_text("{")
    other = write(house, "02_toy")
    assert notebook_times.read([path, other]) == {}
