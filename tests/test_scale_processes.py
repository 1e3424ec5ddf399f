"""Many processes give what one gives, and a run survives the loss of any of them."""

import json
import os
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import scale_cases
import torch
from safetensors.torch import load_file

from cria import checkpoints, tokenizer, training
from cria.config import load
from cria.model import Llama
from cria.scale import keeping, local

LIBRARY = Path(__file__).resolve().parents[1] / "lib"
SAME = {"rtol": 0, "atol": 1e-5}
TIMES = ("seconds", "tokens_per_s")
NAMES = [*scale_cases.CASES, "ppo", "ppo run"]
FEWER = ["text", "one row", "sft", "rm safety", "ppo"]  # three share two cores
WAYS = ["text+recompute", "text+bfloat16", "rm+bfloat16", "ppo+recompute"]


@pytest.fixture(scope="module")
def once():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield {name: scale_cases.alone(name) for name in NAMES}
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=[2, 3])
def many(request, tmp_path_factory):
    """All cases, trained by 2 and by 3 processes: name → (rows, weights)."""
    out = tmp_path_factory.mktemp("many")
    names = NAMES + WAYS if request.param == 2 else FEWER
    words = local.command(request.param, [])
    script = [*words[: words.index("cria.scale.launch") - 1], scale_cases.__file__]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(LIBRARY)}
    done = subprocess.run(
        [*script, str(out), *names],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {
        name: (
            json.loads((out / f"{name}.json").read_text()),
            load_file(out / f"{name}.safetensors"),
        )
        for name in names
    }
    return request.param, found


def assert_same(one, other, weights=SAME):
    (rows, before), (theirs, after) = one, other
    assert len(rows) == len(theirs)
    for row, their in zip(rows, theirs, strict=True):
        for name in row.keys() - {*TIMES, "rows"}:
            assert their[name] == pytest.approx(row[name], rel=1e-5, abs=1e-5), name
    assert before.keys() == after.keys()
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, **weights)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_weights_are_those_of_one_process(name, once, many):
    if name not in many[1]:
        pytest.skip("tried with two")
    assert_same(once[name], many[1][name])
    if name in ("rm safety", "ppo run"):  # another matrix, or none, is learnt
        return
    first = scale_cases.llama().state_dict()["output.weight"]
    moved = [w for n, w in once[name][1].items() if n.endswith("output.weight")]
    assert (moved[0] - first).abs().max() > 1e-3, "else nothing was trained"


def test_metrics_are_means_over_the_whole_batch(many):
    """Each part tells how many rows it had: weighted by its share, that adds up."""
    size, found = many
    parts = [2, 2] if size == 2 else [2, 1, 1]
    expected = sum(n * n / 4 for n in parts)
    assert found["text"][0][0]["rows"] == pytest.approx(expected)


def test_other_ways_to_compute_give_the_same_or_nearly(once, many):
    for full in set(many[1]) & set(WAYS):
        name, way = full.split("+")
        rows, other = once[name][0], many[1][full][0]
        if way == "recompute":
            assert_same(once[name], many[1][full])
            continue
        for row, their in zip(rows, other, strict=True):
            assert their["loss"] == pytest.approx(row["loss"], rel=0.05)
        assert rows[-1]["loss"] != other[-1]["loss"]


# ---- killed, and taken up by another number of processes ---------------------------

STEPS, EVERY = 240, 40


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A profile, a vocabulary and tokens of one's own, so that no stage is built."""
    folder = tmp_path_factory.mktemp("own")
    vocabulary = tokenizer.train(["a b c d e f g"] * 9, 280, folder / "tokenizer.model")
    ids = torch.randint(3, 280, (STEPS * 3, 24)).numpy().astype(np.uint16)
    np.save(folder / "tokens.npy", ids)
    (folder / "own.yaml").write_text(
        f"extends: smoke\ntokenizer: {{vocab_size: {vocabulary.vocab_size}}}\n"
        f"model: {{vocab_size: {vocabulary.vocab_size}, dim: 16}}\n"
        "pretrain: {batch_size: 3, seq_len: 24, dtype: float32}\n"
    )
    return folder


def words(own, out):
    return [
        "base", "--profile", own / "own.yaml", "--tokenizer", own / "tokenizer.model",
        "--data", own / "tokens.npy", "--out", out, "--steps", STEPS,
        "--checkpoint-every", EVERY, "--log-every", 1,
    ]  # fmt: skip


def test_killed_on_two_then_stopped_on_one_then_finished_on_three(own, tmp_path):
    out = tmp_path / "run"
    running = local.start(2, words(own, out))
    try:
        local.wait_for_step(running, out, EVERY)
        os.kill(local.workers(running)[1], signal.SIGKILL)
        said = running.communicate(timeout=200)[0]
    finally:
        local.stop(running)
    assert running.returncode != 0
    kept = keeping.newest(out)
    [message] = [line for line in said.splitlines() if line.startswith("cria: ")]
    assert message.startswith("cria: process 0 of 2: another process is gone")
    assert f"{kept} is whole: the same command goes on from there" in message
    assert EVERY <= keeping.step_of(kept) < STEPS and not (out / "model").exists()

    running = local.start(1, words(own, out))
    try:
        local.wait_for_step(running, out, keeping.step_of(kept) + 1)
        os.kill(local.workers(running)[0], signal.SIGTERM)
        said = running.communicate(timeout=200)[0]
    finally:
        local.stop(running)
    assert running.returncode != 0 and "run it again to go on" in said
    stopped = keeping.step_of(keeping.newest(out))
    assert f"base stopped after step {stopped} of {STEPS}" in said
    assert stopped < STEPS

    code, lines = local.run(3, words(own, out), say=lambda line: None, limit=200)
    assert code == 0, lines
    assert f"base: {stopped} of {STEPS} steps are done, going on from there" in lines
    rows, weights = uninterrupted(own)
    model = checkpoints.load(out / "model")
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), weights[name], **SAME)
    seen = (out / "metrics.csv").read_text().splitlines()[1:]
    assert [float(line.split(",")[1]) for line in seen] == pytest.approx(
        [row["loss"] for row in rows], abs=1e-5
    )
    assert {p.name for p in out.iterdir()} == {
        "metrics.csv", "model", f"step-{STEPS:08d}"
    }  # fmt: skip


def uninterrupted(own):
    """The same run in one process, by `cria.training`."""
    settings = load(own / "own.yaml", **{"pretrain.steps": STEPS})
    tokens = torch.from_numpy(np.load(own / "tokens.npy").astype(np.int64))
    everything = torch.ones(3, 24, dtype=torch.bool)
    model = Llama(settings.model, seed=0)
    rows = training.train(
        model,
        lambda step: {"ids": tokens[3 * step : 3 * step + 3], "loss_mask": everything},
        scale_cases.lm_loss,
        settings.pretrain.optim,
        STEPS,
        dtype="float32",
        log_every=1,
        progress=False,
    )
    return rows, model.state_dict()
