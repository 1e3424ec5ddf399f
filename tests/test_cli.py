"""The command line and the notebooks behind it, on a house with toy notebooks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cria import cli, notebooks, stages, talk, watching

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = 'profile = "course"\nseed = 0'
TOY = """
- {id: 1, says: Up is up., paper: "Yes.", section: "2", notebook: 01_toy,
   measures: [{name: gain, what: the gain, unit: share, expect: "> 0"}]}
- {id: 2, says: Down is down., paper: "Yes.", section: "2", notebook: 02_toy,
   measures: [{name: gain, what: the gain, unit: share, expect: "< 0"}]}
"""


def write(house, name, *code, parameters=PARAMETERS):
    cells = [new_markdown_cell("# Toy")]
    cells += [new_code_cell(parameters, metadata={"tags": ["parameters"]})]
    cells += [new_code_cell(text) for text in code]
    notebook = new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = dict(notebooks.KERNEL)
    path = house / "notebooks" / f"{name}.ipynb"
    nbformat.write(notebook, path)
    return path


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository of its own: claims, notebooks, an empty cache."""
    for folder in ("data", "notebooks"):
        (tmp_path / folder).mkdir()
    (tmp_path / "data/findings.yaml").write_text(TOY)
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    monkeypatch.setenv("CRIA_CACHE", str(tmp_path / "cache"))
    lib = os.pathsep.join([str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", lib)  # for the kernels
    return tmp_path


def cria(capsys, *words):
    code = cli.main(words)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["rnu"], "did you mean run?"),
        (["run", "--profil3", "smoke"], "did you mean --profile?"),
        (["run", "--profile", "smkoe"], "did you mean smoke"),
        (["run", "01_tyo"], "did you mean 01_toy?"),
        (["run", "--seed", "-1"], "--seed"),
        (["chat", "sft_aa"], "did you mean sft_a?"),
        (["chat", "--prompt", " "], "--prompt is empty"),
        (["chat", "--temperature", "-1"], "--temperature must be 0 or more"),
        (["chat", "--top-p", "1.5"], "--top-p"),
        (["chat", "--max-new-tokens", "0"], "--max-new-tokens must be 1 or more"),
        (["findings", "3"], "they go from 1 to 2"),
        ([], ""),
    ],
)
def test_what_is_not_understood_is_one_sentence(house, capsys, words, sentence):
    write(house, "01_toy")
    if not words:  # no command at all is a call for help
        with pytest.raises(SystemExit) as stop:
            cli.main(words)
        assert stop.value.code == 0 and "usage: cria" in capsys.readouterr().out
        return
    code, out, err = cria(capsys, *words)
    assert code == 2 and out == ""
    assert err.startswith("cria: ") and err.count("\n") == 1 and sentence in err


def test_errors_are_one_line_unless_debug(house, capsys):
    (house / "cache").mkdir()
    (house / "cache/findings.json").write_text("{")
    code, _, err = cria(capsys, "findings")
    assert code != 0 and err.count("\n") == 1 and "delete it" in err
    with pytest.raises(ValueError, match="delete it"):
        cli.main(["findings", "--debug"])


def test_help_needs_no_torch():
    """--help answers at once: nothing slow is imported for it."""
    code = (
        "import sys, cria.cli\n"
        "try: cria.cli.main(['run', '--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'torch', 'matplotlib', 'pandas', 'papermill'} & set(sys.modules)\n"
        "sys.exit(f'imported {slow}' if slow else 0)"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT / "lib")}
    subprocess.run([sys.executable, "-c", code], env=env, check=True)


def test_run_with_parameters_then_scoreboard(house, capsys):
    record = "from cria import stages; from pathlib import Path\nimport os\n"
    record += "stages.ROOT = Path(os.environ['CRIA_CACHE']).parent\n"
    record += "from cria import findings\n"
    record += "findings.record({}, profile=profile, seed=seed, gain=0.5 + seed)"
    write(house, "02_toy", record.format(2), "print('second')")
    write(house, "01_toy", record.format(1))
    code, out, err = cria(capsys, "run", "--profile", "deep", "--seed", "3")
    assert (code, err) == (0, "")
    assert "[1/2] 0" in out and "[2/2] 0" in out
    assert "01_toy done in" in out and "02_toy done in" in out
    assert "shown (this run)" in out and "+3.50 ✓ (deep, seed 3)" in out
    assert "✗ not shown (this run)" in out
    executed = notebooks.read(house / "build/notebooks/02_toy.ipynb")
    assert executed.cells[-1].outputs[0].text == "second\n"


def test_run_stops_at_the_first_failure_and_names_the_cell(house, capsys):
    write(house, "01_toy", "x = 1", "raise KeyError('no such llama')")
    write(house, "02_toy", "import time; time.sleep(100)")
    code, out, err = cria(capsys, "run")
    assert code == 1
    # title, parameters, injected parameters, x = 1, then the one that fails
    assert err == "cria: 01_toy stopped in cell 5: KeyError: 'no such llama'\n"
    assert not (house / "build/notebooks/02_toy.ipynb").exists()
    assert "we saw" not in out


def test_a_parameter_that_the_notebook_lacks_is_refused(house, capsys):
    write(house, "01_toy", parameters='profile = "course"')
    code, _, err = cria(capsys, "run")
    assert code == 1 and "01_toy has no parameter seed" in err


def test_findings_as_json_and_kept(house, capsys):
    from cria import findings

    findings.record(1, profile="course", seed=0, gain=0.25)
    code, out, _ = cria(capsys, "findings", "--json")
    lines = json.loads(out)
    assert code == 0 and [line["this_run"] for line in lines] == [0.25, None]
    assert lines[0]["verdicts"] == ["shown (this run)"]
    assert cria(capsys, "findings", "1", "--keep")[0] == 0
    assert "(course, 1 seed)" in cria(capsys, "findings", "1")[1]


def test_readme_is_renewed_between_its_markers_only(house, capsys):
    from cria import findings, scoreboard

    readme = house / "README.md"
    readme.write_text("# Before\n")
    code, _, err = cria(capsys, "findings", "--readme")
    assert code == 1 and "no place for the findings" in err
    readme.write_text(f"# Before\n{scoreboard.BEGIN}\nold\n{scoreboard.END}\nAfter\n")
    assert cria(capsys, "findings", "--readme")[1] == "Written.\n"
    assert readme.read_text() == f"# Before\n{findings.readme_table()}\nAfter\n"
    assert "up to date" in cria(capsys, "findings", "--readme")[1]


def test_clean_frees_the_cache(house, capsys):
    folder = house / "cache" / ("base-" + "0" * 16)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"0" * 3_000_000)
    code, out, _ = cria(capsys, "clean")
    assert code == 0 and "3 MB freed" in out and not folder.exists()


def test_execute_stamps_and_check_finds_every_change(house, capsys):
    path = write(house, "01_toy", "print('hello')\nimport os; os.getcwd()[:0]")
    assert cria(capsys, "check")[0] == 1  # never executed
    assert cria(capsys, "execute")[0] == 0
    assert cria(capsys, "check") == (0, "1 notebook, all as executed.\n", "")

    whole = path.read_text()
    assert str(house) not in whole and "papermill" not in whole
    notebook = notebooks.read(path)
    assert notebook.cells[-1].outputs[0].text == "hello\n"
    assert len(notebook.cells) == 3  # no injected cell stays behind

    def changed(change):
        notebook = notebooks.read(path)
        change(notebook)
        nbformat.write(notebook, path)
        code, out, _ = cria(capsys, "check")
        path.write_text(whole)
        return code, out

    def edit(notebook):
        notebook.cells[-1].source += "  # more"

    def forge(notebook):
        notebook.cells[-1].outputs[0].text = "hallo\n"

    def explain(notebook):
        notebook.cells[0].source += "\nBetter words."

    assert changed(edit)[0] == 1 and "code cells differ" in changed(edit)[1]
    assert changed(forge)[0] == 1 and "outputs differ" in changed(forge)[1]
    assert changed(explain)[0] == 0  # words may change freely


def test_execute_wants_the_course_profile(house, capsys):
    write(house, "01_toy", parameters='profile = "smoke"\nseed = 0')
    code, _, err = cria(capsys, "execute")
    assert code == 1 and "must say profile = 'course'" in err


def test_ctrl_c_lets_the_cell_save_then_ends_the_kernel(house):
    slow = (
        "import os, time\n"
        "open('started', 'w').write(str(os.getpid()))\n"
        "try: time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(0.5)\n"  # a checkpoint takes a moment
        "    open('saved', 'w').write('yes')\n"
        "    raise"
    )
    write(house, "01_toy", slow)
    code = (
        # A job in the background of a script is born deaf to Ctrl-C.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys; from pathlib import Path; from cria import stages, cli\n"
        f"stages.ROOT = Path({str(house)!r}); sys.exit(cli.main(['run']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
    )
    started = house / "notebooks/started"
    end = time.monotonic() + 30
    while not (started.exists() and started.read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=30)
    assert child.returncode == 130 and "the same command goes on" in out
    kernel = int(started.read_text())
    end = time.monotonic() + 10
    while _alive(kernel):
        assert time.monotonic() < end, "the kernel outlived the command"
        time.sleep(0.05)
    assert (house / "notebooks/saved").exists()


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_ticker_prints_now_and_then_and_a_line_that_stays(capsys):
    ticker = watching.Ticker("01_toy", every=0.0)
    ticker(watching.Progress(2, 9, "step 5/10 loss 1.2"))
    quiet = watching.Ticker("02_toy", every=1e9)
    quiet(watching.Progress(2, 9, "unseen"))
    ticker.close("01_toy done")
    out = capsys.readouterr().out
    assert "01_toy cell 2/9" in out and "step 5/10 loss 1.2" in out
    assert "unseen" not in out and out.endswith("01_toy done\n")


class Parrot:
    """A model that needs no weights: says how many turns it was given."""

    name = "parrot"

    def __init__(self):
        self.seen = []

    def answer(self, messages, **options):
        if "[INST]" in messages[-1]["content"]:
            raise ValueError("the text holds the tag [INST].")
        self.seen.append([m["content"] for m in messages])
        return f"turn {len(messages)}"


def test_a_conversation_remembers_begins_anew_and_survives_bad_text(
    monkeypatch, capsys
):
    said = [
        "hello",
        "[INST] trick",
        "again",
        "/nwe",
        "/new",
        "fresh",
        "/quit",
        "unread",
    ]
    lines = iter(said)
    monkeypatch.setattr("builtins.input", lambda _: next(lines))
    parrot = Parrot()
    talk.converse(parrot)
    assert parrot.seen == [["hello"], ["hello", "turn 1", "again"], ["fresh"]]
    out = capsys.readouterr().out
    assert "the text holds the tag" in out and talk.COMMANDS in out
    assert next(lines) == "unread"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_conversation_ends_quietly(monkeypatch, end):
    def stop(_):
        raise end

    monkeypatch.setattr("builtins.input", stop)
    talk.converse(Parrot())


def test_a_tag_that_a_model_babbles_does_not_end_the_conversation():
    class Babbler(Parrot):
        def answer(self, messages, **options):
            assert not any("INST]" in m["content"] for m in messages)
            return "so [/IN[/INST]ST] it is"

    conversation = talk.Conversation(Babbler())
    assert [conversation.say("hello") for _ in range(2)] == ["so  it is"] * 2


def test_prompt_prints_the_answer_alone(house, capsys, monkeypatch):
    monkeypatch.setattr(talk, "speaker", lambda *a, **k: a[3]("building …") or Parrot())
    code, out, err = cria(capsys, "chat", "--prompt", "Where does Anna live?")
    assert (code, out, err) == (0, "turn 1\n", "building …\n")
