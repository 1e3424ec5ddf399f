"""`cria plan`: a page for people, JSON for programs, one sentence for mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cria import cli

ROOT = Path(__file__).resolve().parents[1]


def cria(capsys, *words):
    code = cli.main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_page_with_the_paper_beside_it(capsys):
    code, out, err = cria(capsys, "llama2-70b", "--gpus", "2000", "--gpu", "h100-80gb")
    assert (code, err) == (0, "")
    assert out.startswith("llama2-70b: 68,976,648,192 parameters\non 2,000 × h100-80gb")
    assert "1,720,320" in out and "291.42" in out
    for part in (
        "Memory a GPU",
        "Work",
        "Sampling",
        "Beside the paper",
        "Ours, because",
    ):
        assert part in out


def test_the_tiny_profiles_and_files_of_one_s_own_are_planned_too(capsys, tmp_path):
    assert cria(capsys, "course")[1].startswith("course: 1,049,728 parameters")
    own = tmp_path / "own.yaml"
    own.write_text("extends: smoke\npretrain: {steps: 30}\n")
    code, out, _ = cria(capsys, str(own), "--json")
    assert code == 0
    found = json.loads(out)
    assert found["profile"] == "own" and found["stages"][0]["steps"] == 30


def test_json_is_the_plan_alone(capsys):
    code, out, err = cria(capsys, "llama2-7b", "--gpus", "64", "--mfu", "0.5", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert (found["gpus"], found["gpus_given"], found["mfu"]) == (64, True, 0.5)
    slower = json.loads(cria(capsys, "llama2-7b", "--gpus", "64", "--json")[1])
    hours = [plan["stages"][0]["gpu_hours"] for plan in (found, slower)]
    assert hours[0] / hours[1] == pytest.approx(0.4 / 0.5)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["llama2-70"], 2, "did you mean llama2-70b?"),
        (["--gpu", "a100-80"], 2, "did you mean a100-80gb?"),
        (["--gpus", "0"], 2, "--gpus must be 1 or more"),
        (["--gpus", "many"], 2, "--gpus"),
        (["--mfu", "40"], 2, "--mfu must be above 0"),
        (["--jsn"], 2, "did you mean --json?"),
        (["llama2-70b", "--gpus", "8"], 1, "the training state of pre-training takes"),
    ],
)
def test_what_cannot_be_planned_is_one_line(capsys, words, code, sentence):
    found, out, err = cria(capsys, *words)
    assert (found, out) == (code, "")
    assert err.startswith("cria: ") and err.count("\n") == 1 and sentence in err


def test_help_needs_no_torch():
    code = (
        "import sys, cria.cli\n"
        "try: cria.cli.main(['plan', '--help'])\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True)
    assert done.returncode == 0 and b"--gpus" in done.stdout
