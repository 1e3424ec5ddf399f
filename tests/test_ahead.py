"""Stages built ahead: in order, two at a time, and nothing half when it stops."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from cria import ahead, stage_times, stages
from cria.ahead import StageError
from cria.stages import Stage


@dataclass(frozen=True)
class Toy:
    profile: str = "course"


def told(out, word):
    """Write into the diary beside the cache: appending is whole for short lines."""
    with open(out.parent / "diary", "a") as diary:
        diary.write(f"{word} {os.getpid()}\n")


def plain(config, seed, upstream, out, name="", nap=0.0, meet=None):
    told(out, f"begin {name}")
    if meet:  # go on only when the other one has begun as well
        (out.parent / f"{name}.here").touch()
        end = time.monotonic() + 20
        while not (out.parent / f"{meet}.here").exists():
            if time.monotonic() > end:
                raise RuntimeError(f"{name} waited for {meet} in vain")
            time.sleep(0.02)
    print(f"{name} is at work")
    time.sleep(nap)
    told(out, f"end {name}")
    return {"said": sorted(made.metrics["name"] for made in upstream.values())} | {
        "name": name
    }


def broken(config, seed, upstream, out):
    raise ValueError("the flour is damp: buy dry flour.")


def odd(config, seed, upstream, out):
    return {"x": {}["y"]}


def killed(config, seed, upstream, out):
    os.kill(os.getpid(), signal.SIGKILL)


def patient(config, seed, upstream, out):
    """Saves when it is interrupted, and goes on from there."""
    if (out / "half").exists():
        return {"went_on": True}
    try:  # from here on: an interruption may come right after the diary's line
        told(out, "begin patient")
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(0.3)
        (out / "half").write_text("half")
        raise
    return {}


def stage(name, *needs, **options):
    return Stage(plain, needs=needs, options={"name": name, **options})


# a ── b ── d (together b and c)
#   └─ c ─┘
DIAMOND = {
    "a": stage("a"),
    "b": stage("b", "a", meet="c"),
    "c": stage("c", "a", meet="b"),
    "d": stage("d", "b", "c"),
    "unasked": stage("unasked"),
}


def build(wanted, cache, table=DIAMOND, workers=2, **more):
    return ahead.build(wanted, Toy(), 0, cache, table=table, workers=workers, **more)


def diary(cache):
    return [line.split()[:2] for line in (cache / "diary").read_text().splitlines()]


def test_order_is_kept_and_two_are_built_at_once(tmp_path):
    """b and c wait for each other to begin: one after the other, they would fail."""
    seen = []
    assert sorted(build(["d"], tmp_path, watch=seen.append)) == ["a", "b", "c", "d"]
    order = diary(tmp_path)
    at = {tuple(entry): i for i, entry in enumerate(order)}
    for name, made in DIAMOND.items():
        for need in made.needs if name != "unasked" else ():
            assert at["end", need] < at["begin", name]
    assert ["begin", "unasked"] not in order and len(order) == 8
    made = stages.get("d", Toy(), 0, tmp_path, table=DIAMOND)
    assert made.metrics == {"said": ["b", "c"], "name": "d"}
    assert len(diary(tmp_path)) == 8  # it was found, not built again

    assert [s.built[0] for s in seen if s.built][-1] == "d"
    assert {s.total for s in seen} == {4} and seen[-1].done == 4
    assert max(len(s.running) for s in seen) == 2
    assert any("at work" in s.line for s in seen)


def test_what_is_there_is_left_alone(tmp_path):
    build(["d"], tmp_path)
    folder = stages.find("a", Toy(), 0, tmp_path, table=DIAMOND).path
    (folder / "metrics.json").unlink()  # a finished d needs no a any more
    assert build(["d"], tmp_path) == []
    assert build(["d", "a"], tmp_path) == ["a"]


def test_one_core_leaves_it_to_the_notebooks(tmp_path):
    assert build(["d"], tmp_path, workers=1) == []
    assert not (tmp_path / "diary").exists()


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (broken, "the stage bad could not be built: the flour is damp: buy dry flour."),
        (odd, "the stage bad could not be built: KeyError: 'y'"),
        (killed, "the stage bad could not be built: its process ended"),
    ],
)
def test_a_failure_is_one_sentence_and_stops_the_rest(tmp_path, function, said):
    table = {
        "slow": Stage(patient),
        "bad": Stage(function),
        "after": stage("after", "slow", "bad"),
    }
    begun = time.monotonic()
    with pytest.raises(StageError) as error:
        build(["after"], tmp_path, table)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)
    if function is odd:
        assert "Traceback" in error.value.traceback
    assert time.monotonic() - begun < 30
    whole = [
        name for name in table if stages.find(name, Toy(), 0, tmp_path, table=table)
    ]
    assert whole == []
    # the other stage was interrupted, not killed: it goes on from what it saved
    if (tmp_path / "diary").exists():
        assert list(tmp_path.glob("slow-*.partial/half"))


def test_an_unknown_stage_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean unasked?"):
        build(["unaksed"], tmp_path)


PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {here!r})
from pathlib import Path
import test_ahead
from cria.stages import Stage
if __name__ == "__main__":
    table = {{"slow": Stage(test_ahead.patient), "other": test_ahead.stage("other")}}
    try:
        test_ahead.build(["slow", "other"], Path({cache!r}), table)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interruption_leaves_nothing_half_and_no_process(tmp_path, how):
    script = tmp_path / "parent.py"
    cache = tmp_path / "cache"
    cache.mkdir()
    here = str(Path(__file__).parent)
    script.write_text(textwrap.dedent(PARENT.format(here=here, cache=str(cache))))
    path = os.pathsep.join([str(stages.ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    child = subprocess.Popen(
        [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": path}
    )
    wait_for(lambda: sealed(cache, "other") and begun(cache, "patient"))
    [worker] = [int(w) for b, n, w in lines_of(cache) if (b, n) == ("begin", "patient")]
    child.send_signal(how)
    assert child.wait(20) == (130 if how == signal.SIGINT else -signal.SIGKILL)
    wait_for(lambda: not alive(worker))
    table = {"slow": Stage(patient), "other": stage("other")}
    assert stages.find("other", Toy(), 0, cache, table=table)  # what was built stays
    assert stages.find("slow", Toy(), 0, cache, table=table) is None
    if how == signal.SIGINT:  # … and what was begun goes on
        assert build(["slow", "other"], cache, table) == ["slow"]
        assert stages.get("slow", Toy(), 0, cache, table=table).metrics["went_on"]


def sealed(cache, name):
    return [f for f in cache.glob(f"{name}-*") if f.suffix != ".partial"]


def begun(cache, name):
    return ["begin", name] in diary(cache)


def lines_of(cache):
    return [line.split() for line in (cache / "diary").read_text().splitlines()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the child process did not get that far"
        time.sleep(0.02)


# ---- how long it will take ----------------------------------------------------------


@pytest.fixture
def times(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setattr(stages, "ROOT", tmp_path)

    def times(seconds, profile="course"):
        stage_times.path().write_text(json.dumps(seconds))
        return stage_times.Times(["a", "b", "c", "d"], DIAMOND, profile)

    return times


SECONDS = {"a": 10, "b": 30, "c": 20, "d": 5}


def test_time_left_is_the_longest_chain_or_the_shared_work(times):
    t = times(SECONDS)
    every = list(SECONDS)
    assert t.left(every, {}, workers=1) == 65
    assert t.left(every, {}, workers=2) == 45  # a, b, d: more workers do not help
    assert t.left(every, {}, workers=9) == 45
    assert t.left(["d"], {"b": 25, "c": 19}, workers=2) == 10
    assert t.left([], {"d": 99}, workers=2) == 0  # late, but never negative


def test_time_left_follows_the_pace_of_this_machine(times):
    t = times(SECONDS, "smoke")
    assert t.left(["d"], {"b": 0, "c": 0}, 2) is None  # nothing to go by yet
    t.finished("a", 5)
    assert t.left(["d"], {"b": 0, "c": 0}, 2) == 0.5 * 35
    course = times(SECONDS)
    course.finished("a", 20)  # one slow stage does not double the rest at once
    assert 35 < course.left(["d"], {"b": 0, "c": 0}, 2) < 45


def test_the_longest_way_comes_first(times):
    t = times(SECONDS)
    assert sorted(SECONDS, key=t.way, reverse=True) == ["a", "b", "c", "d"]


def test_times_are_a_guess_and_never_stop_anything(times, tmp_path):
    stage_times.path().parent.mkdir(exist_ok=True)
    t = times(SECONDS)
    stage_times.path().write_text("{")
    assert stage_times.read() == {}
    t = stage_times.Times(["a"], DIAMOND, "course")
    assert t.left(["a"], {}, 2) is None
    build(["a"], tmp_path)
    known = times({"a": 10})  # c, say, is new: it is taken for an ordinary one
    assert known.expected["c"] == 10
