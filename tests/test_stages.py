"""Stages: built once, never trusted when damaged, never stale, never built twice."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from cria import fingerprint, stage_cache, stages
from cria.stage_kind import SETTINGS
from cria.stages import Stage


@dataclass(frozen=True)
class Cook:
    heat: int = 3


@dataclass(frozen=True)
class Toy:
    """A config with two sections; only `cook` matters to the toy stages."""

    cook: Cook = Cook()
    serve: Cook = Cook()


BUILT: list[str] = []


def dough(config, seed, upstream, out):
    BUILT.append("dough")
    (out / "dough.txt").write_text(f"dough {seed}")
    return {"weight": 2.5}


def bread(config, seed, upstream, out, shape="round"):
    BUILT.append("bread")
    crumb = upstream["dough"].file("dough.txt").read_text()
    (out / "bread.txt").write_text(f"{crumb} {config.cook.heat} {shape}")
    return {"weight": upstream["dough"].metrics["weight"] - 0.5}


TABLE = {
    "dough": Stage(dough),
    "bread": Stage(bread, needs=("dough",), sections=("cook",)),
    "long": Stage(
        bread, needs=("dough",), sections=("cook",), options={"shape": "long"}
    ),
}


@pytest.fixture(autouse=True)
def fresh():
    BUILT.clear()


def get(name, cache, config=None, seed=0, table=TABLE, say=print):
    return stages.get(name, config or Toy(), seed, cache, table=table, say=say)


def test_builds_what_it_needs_once_then_loads(tmp_path, capsys):
    made = get("bread", tmp_path)
    assert made.file("bread.txt").read_text() == "dough 0 3 round"
    assert made.metrics == {"weight": 2.0}
    assert BUILT == ["dough", "bread"]
    capsys.readouterr()

    again = get("bread", tmp_path)
    assert again == made and BUILT == ["dough", "bread"]
    assert capsys.readouterr().out == "bread: from cache\n"


def test_a_stage_needed_twice_is_looked_at_once(tmp_path, capsys, monkeypatch):
    """A long chain costs as many looks as it has stages, not as it has paths."""
    table = {"s0": Stage(lambda *a: {}), "s1": Stage(lambda *a: {}, needs=("s0",))}
    for i in range(2, 40):
        table[f"s{i}"] = Stage(lambda *a: {}, needs=(f"s{i - 2}", f"s{i - 1}"))
    get("s39", tmp_path, table=table)
    said = capsys.readouterr().out
    assert said.count("building") == 40 and "from cache" not in said


def test_a_finished_stage_does_not_need_its_upstream_any_more(tmp_path):
    dough_folder = get("dough", tmp_path).path
    get("bread", tmp_path)
    (dough_folder / "dough.txt").unlink()
    get("bread", tmp_path)
    assert BUILT == ["dough", "bread"]


def test_provenance_says_how_it_came_about(tmp_path):
    made = get("bread", tmp_path, seed=4)
    p = made.provenance
    assert (p["seed"], p["config"]) == (4, {"cook": {"heat": 3}})
    assert p["upstream"] == {"dough": get("dough", tmp_path, seed=4).path.name}
    assert p["seconds"] >= 0 and "python" in p["versions"] and "cores" in p["machine"]
    assert set(p["files"]) == {"bread.txt", "metrics.json"}
    assert str(tmp_path) not in json.dumps(p)  # no paths of this machine


def test_key_follows_what_the_stage_reads_and_nothing_else():
    def key(name, config=None, seed=0):
        return stages.key(name, config or Toy(), seed, table=TABLE)

    hot = Toy(cook=Cook(heat=9))
    served = Toy(serve=Cook(heat=9))
    assert key("bread") != key("bread", hot)
    assert key("bread") == key("bread", served)  # not a section it names
    assert key("dough") == key("dough", hot)
    assert key("bread") != key("bread", seed=1)
    assert key("bread") != key("long")  # options


def test_key_follows_upstream(tmp_path):
    table = dict(TABLE, dough=Stage(dough, sections=("serve",)))
    one = stages.key("bread", Toy(), 0, table=table)
    two = stages.key("bread", Toy(serve=Cook(heat=9)), 0, table=table)
    assert one != two


def test_key_follows_the_data_files(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/people.csv").write_text("Anna")
    table = {"dough": Stage(dough, data=("*.csv",))}

    def key():
        return stages.key("dough", Toy(), 0, table=table)

    before = key()
    (tmp_path / "data/notes.txt").write_text("not read by the stage")
    assert key() == before
    (tmp_path / "data/people.csv").write_text("Bob")
    changed = key()
    assert changed != before
    (tmp_path / "data/towns.csv").write_text("Brill")
    assert key() not in (before, changed)
    table["dough"] = replace(table["dough"], data=("*.parquet",))
    with pytest.raises(FileNotFoundError, match="parquet"):
        key()


def write_house(root: Path, **files: str) -> None:
    house = root / "toyhouse"
    (house / "attic").mkdir(parents=True, exist_ok=True)
    base = {
        "__init__": "",
        "cellar": "SHELF = 1\n",
        "kitchen": "from toyhouse import attic\ndef cook():\n    return attic.SHELF\n",
        "attic/__init__": "from ..cellar import SHELF\n",
        "shed": "TOOLS = 3\n",
    }
    for name, text in {**base, **files}.items():
        (house / f"{name}.py").write_text(text)


def test_code_key_follows_imports_but_not_words(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)

    def code(**files):
        write_house(tmp_path, **files)
        return fingerprint.of_code("toyhouse.kitchen")

    before = code()
    reached = fingerprint.closure("toyhouse.kitchen")
    assert set(reached) == {
        f"toyhouse{end}" for end in ("", ".kitchen", ".attic", ".cellar")
    }
    # two imports away, through a relative import in a sub-package
    assert code(cellar="SHELF = 2\n") != before
    assert code(shed="TOOLS = 4\n") == before  # nobody imports the shed
    assert code(cellar='"""Potatoes."""\n# and apples\nSHELF  =  1\n') == before
    late = "def cook():\n    '''Late.'''\n    from .shed import TOOLS\n"
    assert code(kitchen=late) != code(kitchen=late, shed="TOOLS = 5\n")
    # what is skipped does not count, what it imports still does

    def most(**files):
        write_house(tmp_path, **files)
        return fingerprint.of_code("toyhouse.kitchen", skip={"toyhouse.attic"})

    attic = "from ..cellar import SHELF\nBOX = 2\n"
    assert most(**{"attic/__init__": attic}) == most() != code()
    assert most(cellar="SHELF = 2\n") != most()
    # a string that is not a docstring is code
    one = code(cellar='SHELF = 1\nNAME = "a"\n')
    assert one != code(cellar='SHELF = 1\nNAME = "b"\n')


def test_the_settings_that_are_skipped_exist_and_are_reached():
    reached = fingerprint.closure("cria.rejection_stage")
    assert set(SETTINGS) < set(reached)
    assert "cria.config_stages" not in SETTINGS  # it holds rules, not only values


@pytest.mark.parametrize("file", ["bread.txt", "metrics.json", "provenance.json"])
@pytest.mark.parametrize("harm", ["cut", "flip", "delete"])
def test_a_damaged_stage_is_never_loaded(tmp_path, capsys, file, harm):
    made = get("bread", tmp_path)
    path = made.path / file
    whole = path.read_bytes()
    if harm == "delete":
        path.unlink()
    else:
        path.write_bytes(whole[:-3] if harm == "cut" else b"\x00" + whole[1:])
    assert stages.find("bread", Toy(), 0, tmp_path, table=TABLE) is None
    capsys.readouterr()
    again = get("bread", tmp_path)
    assert BUILT == ["dough", "bread", "bread"]
    assert again.file("bread.txt").read_text() == "dough 0 3 round"
    said = capsys.readouterr().out
    assert "bread: damaged (" in said and file in said


def test_a_failing_build_leaves_no_stage_and_the_next_one_goes_on(tmp_path, capsys):
    def stew(config, seed, upstream, out):
        if not (out / "half.txt").exists():
            (out / "half.txt").write_text("half")
            raise RuntimeError("the gas went out")
        return {"went_on": True}

    table = {"stew": Stage(stew)}
    with pytest.raises(RuntimeError, match="gas"):
        get("stew", tmp_path, table=table)
    assert stages.find("stew", Toy(), 0, tmp_path, table=table) is None
    capsys.readouterr()
    made = get("stew", tmp_path, table=table)
    assert made.metrics == {"went_on": True} and made.provenance["resumed"]
    assert "going on with an interrupted build" in capsys.readouterr().out
    assert not stage_cache.partial(made.path).exists()


def test_metrics_must_be_plain(tmp_path):
    table = {"soup": Stage(lambda *a: {"taste": object()})}
    with pytest.raises(ValueError, match="metrics.json can only hold"):
        get("soup", tmp_path, table=table)
    assert stages.find("soup", Toy(), 0, tmp_path, table=table) is None


def test_a_stage_may_name_a_single_knob(tmp_path):
    """The others of that section neither reach the stage nor change its key."""

    def simmer(config, seed, upstream, out):
        assert config.cook.heat == 7
        with pytest.raises(AttributeError):
            _ = config.cook.salt
        return {}

    @dataclass(frozen=True)
    class Salted(Cook):
        salt: int = 1

    table = {"soup": Stage(simmer, sections=("cook.heat",))}
    salted = Toy(cook=Salted(heat=7))
    made = get("soup", tmp_path, salted, table=table)
    assert made.provenance["config"] == {"cook.heat": 7}
    more = Toy(cook=Salted(heat=7, salt=2))
    assert get("soup", tmp_path, more, table=table).path == made.path
    hotter = Toy(cook=Salted(heat=8))
    assert stages.find("soup", hotter, 0, tmp_path, table=table) is None


def test_reading_a_section_that_is_not_named_is_refused(tmp_path):
    table = {"soup": Stage(lambda config, *a: {"heat": config.cook.heat})}
    with pytest.raises(AttributeError, match='add "cook" to its sections'):
        get("soup", tmp_path, table=table)


def test_unknown_stage_names_the_nearest(tmp_path):
    with pytest.raises(ValueError, match="did you mean bread?"):
        get("braed", tmp_path)


CHILD = """
import sys, time
from pathlib import Path
from cria import stages
from cria.stages import Stage
sys.path.insert(0, {here!r})
from test_stages import Toy

def slow(config, seed, upstream, out):
    (out / "started").write_text("yes")
    with open({log!r}, "a") as log:
        log.write("built\\n")
    time.sleep({nap})
    return {{}}

slow.__module__ = "test_stages"  # the same key from every process
stages.get("slow", Toy(), 0, {cache!r}, table={{"slow": Stage(slow)}})
"""


def start_child(tmp_path, nap):
    code = CHILD.format(
        here=str(Path(__file__).parent),
        log=str(tmp_path / "log"),
        cache=str(tmp_path / "cache"),
        nap=nap,
    )
    command = [sys.executable, "-u", "-c", textwrap.dedent(code)]
    path = os.pathsep.join([str(stages.ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def wait_for(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the child process did not get that far"
        time.sleep(0.02)


def test_two_processes_build_a_stage_once(tmp_path):
    first = start_child(tmp_path, nap=6)
    wait_for(lambda: (tmp_path / "log").exists())
    second = start_child(tmp_path, nap=6)
    said = [first.communicate(timeout=30)[0], second.communicate(timeout=30)[0]]
    assert (first.returncode, second.returncode) == (0, 0)
    assert (tmp_path / "log").read_text() == "built\n"
    assert f"slow: process {first.pid} is building it; waiting" in said[1]
    assert said[1].endswith("slow: from cache\n")


def test_clean_spares_strangers_and_running_builds(tmp_path):
    cache = tmp_path / "cache"
    kept = cache / "holiday-photos"
    kept.mkdir(parents=True)
    done = get("bread", cache)
    child = start_child(tmp_path, nap=30)
    wait_for(lambda: list(cache.glob("slow-*.partial/started")))
    freed, busy = stages.clean(cache)
    assert freed > 0 and [name.split("-")[0] for name in busy] == ["slow"]
    assert not done.path.exists() and kept.exists()

    os.kill(child.pid, signal.SIGKILL)  # a dead process holds nothing up
    child.wait()
    assert list(cache.glob("slow-*.partial"))
    assert stages.clean(cache)[1] == []
    assert not list(cache.glob("slow-*"))


def test_the_table_is_sound():
    names = list(stages.STAGES)
    for name, stage in stages.STAGES.items():
        assert all(names.index(need) < names.index(name) for need in stage.needs)
        module, _, function = stage.function.partition(":")
        assert module.startswith("cria.") and function.isidentifier()
