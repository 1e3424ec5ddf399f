"""Recorded seeds: which settings they rest on, and how they come about."""

import itertools
import json
import os
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from cria import cli, config, crew, findings, notebooks, recorded, settings_read, stages
from cria.stage_table import STAGES

ROOT = Path(__file__).resolve().parents[1]
CLAIMS = """
- {id: 1, says: Up is up., paper: "Yes.", section: "2", notebook: 01_toy,
   measures: [{name: gain, what: the gain, unit: share, expect: "> 0"}]}
- {id: 2, says: Down is down., paper: "Yes.", section: "2", notebook: 02_toy,
   measures: [{name: gain, what: the gain, unit: share, expect: "< 0"}]}
"""
RECORD = """
import os
from pathlib import Path
from cria import stages
stages.ROOT = Path(os.environ["CRIA_CACHE"]).parent
from cria import findings
with open(stages.ROOT / "diary", "a") as diary:
    print(seed, {id}, file=diary)
if (stages.ROOT / "broken").exists() and seed == 1:
    raise KeyError("no such llama")
findings.record({id}, profile=profile, seed=seed, gain=0.5 + seed)
"""


@pytest.fixture
def house(tmp_path, monkeypatch):
    for folder in ("data", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/findings.yaml").write_text(CLAIMS)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))
    lib = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", lib)
    return tmp_path


def write(house, name, *code, asks_for=()):
    parameters = new_code_cell('profile = "course"\nseed = 0')
    parameters.metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=[parameters, *map(new_code_cell, code)])
    notebook.metadata["kernelspec"] = dict(notebooks.KERNEL)
    if asks_for is not None:
        notebook.metadata["cria"] = {"stages": list(asks_for)}
    path = house / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


def test_settings_are_those_of_the_cells_and_of_all_stages_below(house):
    path = write(
        house,
        "01_toy",
        "x = config.evaluate.prompts // 2\nn = config.scaling.models['tiny'].dim",
        "y = config.sft\nz = config.ghost.no_knob",
        asks_for=["v1"],
    )
    parts = settings_read.parts(path)
    assert {"evaluate.prompts", "scaling.models", "sft", "ghost", "profile"} <= {*parts}
    assert "evaluate" not in parts and "scaling" not in parts
    for name in stages.upstream(["v1"]):
        for part in STAGES[name].sections:
            assert part in parts or part.split(".")[0] in parts
    assert "ppo.safety_gate" in parts and "ppo" not in parts
    assert not [part for part in parts if part.startswith("best_of_n")]
    assert settings_read.parts(write(house, "02_toy", asks_for=None)) is None
    assert settings_read.parts(house / "notebooks/03_toy.ipynb") is None


def test_only_settings_that_are_read_divide_seeds(house):
    write(house, "01_toy", "config.evaluate.prompts", asks_for=["tokenizer"])

    def keep(seed, **changes):
        findings.record(
            1, profile=config.load("course", **changes), seed=seed, gain=1.0
        )
        findings.keep([1], "course", seed)

    keep(0)
    keep(1, **{"ghost.dialogues": 7})  # no concern of this finding
    keep(2, **{"evaluate.safety_prompts": 7})
    for part, value in (("tokenizer.documents", 777), ("evaluate.prompts", 7)):
        with pytest.raises(ValueError, match=f"other settings .*{part.split('.')[0]}"):
            keep(3, **{part: value})
    course = config.load("course")
    assert recorded.kept_seeds(1, course) == [0, 1, 2]
    with pytest.raises(ValueError, match="smoke"):
        recorded.kept_seeds(1, config.load("smoke"))
    other = config.load("deep", **{"evaluate.prompts": 7})
    findings.record(1, profile=other, seed=0, gain=1.0)
    with pytest.raises(ValueError, match="deep means other settings .*evaluate"):
        findings.keep([1], "deep", 0)  # it would be deep's first seed
    assert recorded.profiles() == ["course"]

    # nobody knows what a notebook reads that was never executed: all must agree
    write(house, "01_toy", asks_for=None)
    with pytest.raises(ValueError, match="other settings .*ghost"):
        recorded.kept_seeds(1, config.load("course", **{"ghost.dialogues": 9}))


def test_the_committed_seeds_can_be_read_and_are_of_todays_settings():
    assert "course" in recorded.profiles()
    for id, profile in itertools.product(recorded.recordable(), recorded.profiles()):
        if kept := recorded.results(id, profile):
            assert kept["rows"] and kept["config"]["profile"] == kept["profile"]
            assert kept["profile"] == profile
            now = config.load(profile)
            rows = [row["seed"] for row in kept["rows"]]
            assert recorded.kept_seeds(id, now) == rows, "of the settings of today"


def cria(capsys, *words):
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


def test_record_goes_on_where_it_stopped(house, capsys, monkeypatch):
    monkeypatch.setattr(crew, "cores", lambda: 1)  # then the order is certain
    for id in (1, 2):
        write(house, f"0{id}_toy", RECORD.format(id=id))
    (house / "broken").touch()
    code, _, err = cria(capsys, "record", "--seeds", "0-1")
    assert code == 1 and "no such llama" in err
    ran = (house / "diary").read_text().split("\n")[:-1]
    assert ran == ["0 1", "0 2", "1 1"]

    (house / "broken").unlink()
    (house / "diary").unlink()
    code, out, _ = cria(capsys, "record", "--seeds", "0,1")
    assert code == 0 and "Seed 0 (1 of 2), course: recorded already." in out
    assert (house / "diary").read_text().split("\n")[:-1] == ["1 1", "1 2"]
    kept = json.loads((house / "data/results/course/finding_02.json").read_text())
    assert [(r["seed"], r["values"]["gain"]) for r in kept["rows"]] == [
        (0, 0.5),
        (1, 1.5),
    ]
    assert cria(capsys, "record", "1", "--seeds", "1")[1].count("recorded already") == 1
    assert (house / "diary").read_text().count("\n") == 2


def test_record_refuses_before_it_trains(house, capsys):
    write(house, "01_toy", RECORD.format(id=1))
    for words, sentence in (
        (["--profile", "smoke"], "smoke profile's numbers mean nothing"),
        (["2"], "notebook 02_toy, which is not there"),
        (["9"], "from 1 to 2"),
        (["--seeds", "4-1"], "4-1 is not like 0-4"),
    ):
        code, _, err = cria(capsys, "record", *words)
        assert code != 0 and sentence in err
    findings.record(1, profile="course", seed=0, gain=1.0)
    findings.keep([1], "course", 0)
    path = house / "data/results/course/finding_01.json"
    kept = json.loads(path.read_text())
    kept["config"]["tokenizer"]["documents"] = 1
    path.write_text(json.dumps(kept))
    write(house, "01_toy", RECORD.format(id=1), asks_for=["tokenizer"])
    code, _, err = cria(capsys, "record")
    assert code == 1 and "delete that one to begin anew" in err
    assert not (house / "diary").exists()
