"""The training loop: killed anywhere, it ends where it would have ended."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from cria import resume
from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.packing import batches, pack, unpacked
from cria.training import TrainingError, lm_loss, pick_dtype, train

OPTIM = OptimConfig(lr=1e-2, warmup_steps=3)
STEPS = 20
TIMES = ("seconds", "tokens_per_s")  # no two runs agree on these


class Bigram(nn.Module):
    """Reads one token, guesses the next. Enough to train in a millisecond."""

    def __init__(self, seed=0):
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.norm = nn.Parameter(torch.ones(16))
        self.output = nn.Linear(16, 30, bias=False)
        generator = torch.Generator().manual_seed(seed)
        for p in (self.embed.weight, self.output.weight):
            nn.init.normal_(p, std=0.3, generator=generator)

    def forward(self, ids):
        return self.output(self.embed(ids) * self.norm).float()


def documents(n=60, seed=0):
    """Counting upwards in steps of one to three, 3 to 20 tokens long."""
    generator = torch.Generator().manual_seed(seed)
    docs = []
    for _ in range(n):
        length, start, by = (
            int(torch.randint(low, high, (), generator=generator))
            for low, high in ((3, 21), (0, 30), (1, 4))
        )
        docs.append(([(start + by * i) % 30 for i in range(length)], None))
    return docs


BATCHES = batches(pack(documents(), 32), 4, seed=0)


def loss_fn(model, batch):
    """Cross entropy with dropout, so that random numbers matter."""
    ids = batch["ids"]
    logits = F.dropout(model(ids), 0.1)
    loss = lm_loss(logits, ids, batch["loss_mask"])
    right = logits[:, :-1].argmax(-1) == ids[:, 1:]
    return loss, {"right": right.float().mean().item()}


def plain_loss(model, batch):
    ids = batch["ids"]
    return lm_loss(model(ids), ids, batch["loss_mask"]), {}


def run(out, **changes):
    """The run that all these tests share; used in child processes as well."""
    settings = {
        "batches": BATCHES,
        "loss_fn": loss_fn,
        "optim": OPTIM,
        "steps": STEPS,
        "out": out,
        "seed": 5,
        "log_every": 3,
        "checkpoint_every": 4,
        "progress": False,
    }
    settings |= changes
    model = settings.pop("model", None) or Bigram()
    rows = train(model, **settings)
    return model, rows


def weights(model):
    return {name: t.clone() for name, t in model.state_dict().items()}


def same_bits(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def timeless(rows):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def read_csv(out):
    with open(out / resume.METRICS, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return timeless(rows)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as the child processes: sums depend on it
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same run, never interrupted: (weights, rows, its folder)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("whole")
    model, rows = run(out)
    torch.set_num_threads(threads)
    return weights(model), rows, out


def assert_as_if_never_stopped(out, whole):
    """Finish the run in `out`; weights, optimizer and CSV equal the whole run's."""
    model, rows = run(out)
    assert same_bits(weights(model), whole[0])
    ours, theirs = (load_file(o / resume.CHECKPOINT) for o in (out, whole[2]))
    assert same_bits(ours, theirs), "optimizer state and all"
    assert timeless(rows) == timeless(whole[1])
    assert read_csv(out) == read_csv(whole[2])
    leftovers = {path.name for path in out.iterdir()}
    assert leftovers == {resume.CHECKPOINT, resume.METRICS}


# ── killed ──────────────────────────────────────────────────────────────────────

KILL = "import os, signal; die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"

IN_A_STEP = """
import torch
whole_step = torch.optim.AdamW.step
def half_a_step(self):
    half_a_step.calls += 1
    if half_a_step.calls == 11:
        self.param_groups.pop()  # the matrices are updated, the norm is not
        whole_step(self)
        die()
    whole_step(self)
half_a_step.calls = 0
torch.optim.AdamW.step = half_a_step
"""

IN_THE_GRADIENT = """
import test_training as t
plain = t.loss_fn
def deadly(model, batch):
    deadly.calls += 1
    if deadly.calls == 10:
        die()
    return plain(model, batch)
deadly.calls = 0
t.loss_fn = deadly
t.run.__globals__["loss_fn"] = deadly
"""

WHILE_WRITING = """
import cria.resume as r
serialize = r.serialize
def half_a_file(tensors, header):
    half_a_file.calls += 1
    whole = serialize(tensors, header)
    if half_a_file.calls < 3:
        return whole
    os.fsync = lambda file: die()  # when half of the bytes are in the file
    return whole[: len(whole) // 2]
half_a_file.calls = 0
r.serialize = half_a_file
"""

BEFORE_THE_RENAME = """
import cria.resume as r
replace = os.replace
def never(source, target):
    if str(target).endswith(r.CHECKPOINT):
        never.calls += 1
        if never.calls == 3:
            die()
    replace(source, target)
never.calls = 0
os.replace = never
"""

AFTER_THE_RENAME = BEFORE_THE_RENAME.replace(
    "            die()\n", "            replace(source, target); die()\n"
)

BEFORE_THE_FIRST = BEFORE_THE_RENAME.replace("== 3", "== 1")


def child(code, out):
    """Run the shared run in a process of its own, after `code` has sabotaged it."""
    here = str(Path(__file__).parent)
    script = (
        f"import torch; torch.set_num_threads(1)\n{KILL}{code}\n"
        f"import pathlib, test_training as t; t.run(pathlib.Path({str(out)!r}))"
    )
    path = os.pathsep.join([here, *sys.path])
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("sabotage", "last_saved"),
    [
        (IN_A_STEP, 8),
        (IN_THE_GRADIENT, 8),
        (WHILE_WRITING, 8),
        (BEFORE_THE_RENAME, 8),
        (AFTER_THE_RENAME, 12),
        (BEFORE_THE_FIRST, None),
    ],
    ids=[
        "in a step",
        "in the gradient",
        "while writing",
        "before the rename",
        "after the rename",
        "before the first checkpoint",
    ],
)
def test_killed_and_resumed_is_never_stopped(sabotage, last_saved, tmp_path, whole):
    done = child(sabotage, tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    checkpoint = tmp_path / resume.CHECKPOINT
    if last_saved is None:
        assert not checkpoint.exists()
    else:
        with safe_open(checkpoint, "pt") as file:
            assert json.loads(file.metadata()["state"])["step"] == last_saved
    assert_as_if_never_stopped(tmp_path, whole)


def test_a_torn_line_in_the_csv_is_mended(tmp_path, whole):
    with pytest.raises(RuntimeError, match="power cut"):
        run(tmp_path, batches=power_cut_at(10))
    with open(tmp_path / resume.METRICS, "a") as file:
        file.write("12,0.33")
    assert_as_if_never_stopped(tmp_path, whole)


def power_cut_at(step):
    def cut(at):
        if at == step:
            raise RuntimeError("power cut")
        return BATCHES(at)

    return cut


def test_stopped_twice_in_one_logging_window(tmp_path, whole):
    for step in (4, 5, 13):
        with pytest.raises(RuntimeError, match="power cut"):
            run(tmp_path, batches=power_cut_at(step))
    assert_as_if_never_stopped(tmp_path, whole)


def test_a_finished_run_is_read_not_repeated(whole):
    def no_more(step):
        assert step == 0, "only the first batch is looked at, to know the data"
        return BATCHES(0)

    model, rows = run(whole[2], model=Bigram(seed=9), batches=no_more)
    assert same_bits(weights(model), whole[0])
    assert rows == whole[1]


def test_llama_resumes_bit_for_bit(tmp_path):
    """The real network, in bfloat16, with documents packed side by side."""
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=30, multiple_of=16
    )

    def loss(model, batch):
        logits = model(batch["ids"], batch["doc_ids"])
        return lm_loss(logits, batch["ids"], batch["loss_mask"]), {}

    def go(out, data=BATCHES):
        model = Llama(config, seed=1)
        return run(out, model=model, loss_fn=loss, dtype="bfloat16", batches=data)

    with pytest.raises(RuntimeError, match="power cut"):
        go(tmp_path / "a", power_cut_at(11))
    resumed, whole_run = go(tmp_path / "a"), go(tmp_path / "b")
    assert same_bits(weights(resumed[0]), weights(whole_run[0]))
    assert resumed[1][-1]["loss"] < resumed[1][0]["loss"] - 0.2


def test_without_a_folder_the_weights_are_the_same(tmp_path, whole, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, rows = run(None)
    assert same_bits(weights(model), whole[0])
    assert timeless(rows) == timeless(whole[1])
    assert not list(tmp_path.iterdir())


# ── Ctrl-C ──────────────────────────────────────────────────────────────────────


@pytest.fixture
def ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield lambda: os.kill(os.getpid(), signal.SIGINT)
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, whole, ctrl_c):
    def pressed(step):
        if step == 9:
            ctrl_c()
        return BATCHES(step)

    with pytest.raises(KeyboardInterrupt, match="after step 10 of 20; run it again"):
        run(tmp_path, batches=pressed)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with safe_open(tmp_path / resume.CHECKPOINT, "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 10
    assert_as_if_never_stopped(tmp_path, whole)


def test_ctrl_c_twice_stops_at_once(tmp_path, ctrl_c):
    def pressed(step):
        if step == 9:
            ctrl_c()
            ctrl_c()
        return BATCHES(step)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, batches=pressed)
    with safe_open(tmp_path / resume.CHECKPOINT, "pt") as file:
        assert json.loads(file.metadata()["state"])["step"] == 8


# ── what must not happen ────────────────────────────────────────────────────────


def changed_batches(step):
    batch = BATCHES(step)
    return {**batch, "ids": (batch["ids"] + 1) % 30}


class Wider(Bigram):
    def __init__(self):
        super().__init__()
        self.more = nn.Parameter(torch.zeros(3))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"steps": 30}, "steps: 20 there, 30 here"),
        ({"seed": 6}, "seed: 5 there, 6 here"),
        ({"optim": OptimConfig(lr=0.5, warmup_steps=3)}, "optim.lr: 0.01 there, 0.5"),
        ({"dtype": "bfloat16"}, "dtype: float32 there"),
        ({"accumulate": 2}, "accumulate: 1 there, 2 here"),
        ({"batches": changed_batches}, "the first batch"),
        ({"model": Wider()}, "the model's shapes"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, says):
    run(tmp_path, dtype="float32")
    before = (tmp_path / resume.CHECKPOINT).read_bytes()
    model = change.pop("model", Bigram(seed=9))
    untouched = weights(model)
    with pytest.raises(TrainingError, match="another run") as error:
        run(tmp_path, model=model, **{"dtype": "float32", **change})
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / resume.CHECKPOINT).read_bytes() == before
    assert same_bits(weights(model), untouched)


def test_damaged_and_foreign_checkpoints_are_one_sentence(tmp_path):
    run(tmp_path)
    path = tmp_path / resume.CHECKPOINT
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="cannot be read"):
        run(tmp_path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match="not a checkpoint of Cria's training"):
        run(tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, bad, whole):
    def sick(model, batch):
        sick.calls += 1
        loss, metrics = loss_fn(model, batch)
        return (loss * bad if sick.calls == 10 else loss), metrics

    sick.calls = 0
    model = Bigram()
    with pytest.raises(TrainingError, match="step 10 of 20") as error:
        run(tmp_path, model=model, loss_fn=sick)
    assert "checkpoint of step 8" in str(error.value)
    assert all(t.isfinite().all() for t in model.state_dict().values())
    assert model.norm.grad is None
    # What was wrong was not saved: a healthy run goes on from step 8.
    assert_as_if_never_stopped(tmp_path, whole)


def test_a_gradient_that_is_not_finite_stops_the_run():
    def sick(model, batch):
        loss, metrics = loss_fn(model, batch)
        return loss + (model.norm.sum() * 0).sqrt(), metrics  # value 0, slope ∞ · 0

    model = Bigram()
    before = weights(model)
    with pytest.raises(TrainingError, match="grad_norm is nan at step 1"):
        run(None, model=model, loss_fn=sick)
    assert same_bits(weights(model), before)


@pytest.mark.parametrize("name", ["steps", "accumulate", "log_every"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0"):
        run(None, **{name: 0})


# ── what a step computes ────────────────────────────────────────────────────────


def test_accumulating_rows_is_one_batch():
    """Rows of very unequal lengths: a mean of the rows' means would be wrong."""
    rows = unpacked(documents(40, seed=3), 32)
    data = batches(rows, 8, seed=1)
    settings = {
        "batches": data,
        "loss_fn": plain_loss,
        "dtype": "float32",
        "optim": OptimConfig(lr=0.05, eps=1.0),  # nearly SGD: errors stay small
        "log_every": 1,
    }
    one, one_rows = run(None, **settings)
    for k in (8, 3):
        model, model_rows = run(None, **settings, accumulate=k)
        for name, t in weights(model).items():
            torch.testing.assert_close(t, weights(one)[name], rtol=1e-5, atol=1e-6)
        for row, one_row in zip(model_rows, one_rows, strict=True):
            assert row["loss"] == pytest.approx(one_row["loss"], rel=1e-5)
            assert row["grad_norm"] == pytest.approx(one_row["grad_norm"], rel=1e-4)
    with torch.no_grad():
        batch, model = data(0), Bigram()
        alone = [
            plain_loss(model, {k: t[i : i + 1] for k, t in batch.items()})[0]
            for i in range(8)
        ]
        together = plain_loss(model, batch)[0]
    assert abs(sum(alone) / 8 - together) > 1e-3, "else this test could not fail"


def test_the_first_step_is_as_long_as_the_schedule_says():
    """Adam's first step moves a weight by the learning rate, if its slope is steep."""
    for warmup in (1, 10):
        optim = OptimConfig(lr=1e-2, warmup_steps=warmup, eps=1e-12, weight_decay=0.0)
        model, before = Bigram(), Bigram()
        with pytest.raises(RuntimeError, match="power cut"):
            run(None, model=model, optim=optim, batches=power_cut_at(1))
        moved = (model.norm - before.norm).abs()
        torch.testing.assert_close(moved, torch.full((16,), 1e-2 / warmup))


def test_the_gradient_is_clipped_before_the_step():
    """Far below eps, Adam's step is in proportion to the gradient."""
    moved = {}
    for clip in (1e-8, 1e-9):
        optim = OptimConfig(lr=1e-2, eps=1.0, weight_decay=0.0, grad_clip=clip)
        model, before = Bigram(), Bigram()
        with pytest.raises(RuntimeError, match="power cut"):
            run(None, model=model.double(), optim=optim, batches=power_cut_at(1))
        moved[clip] = (model.norm - before.double().norm).norm().item()
        assert 0 < moved[clip] <= 1.01e-2 * clip
    assert moved[1e-8] / moved[1e-9] == pytest.approx(10, rel=0.01)


def test_rows_say_what_happened(whole):
    _, rows, _ = whole
    assert [row["step"] for row in rows] == [3, 6, 9, 12, 15, 18, 20]
    tokens = [int((BATCHES(step)["doc_ids"] >= 0).sum()) for step in range(STEPS)]
    assert [row["tokens"] for row in rows] == [sum(tokens[: r["step"]]) for r in rows]
    assert rows[-1]["lr"] == pytest.approx(OPTIM.lr * OPTIM.min_lr_ratio)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert 0 <= rows[0]["right"] <= 1
    assert read_csv(whole[2])[-1]["loss"] == str(rows[-1]["loss"]), "no digit is lost"


def test_the_seed_decides_and_the_callers_randomness_does_not():
    model = Bigram()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, _ = run(None, model=model)
    assert torch.equal(torch.get_rng_state(), before), "left as it was found"
    torch.manual_seed(2)
    two, _ = run(None)
    other, _ = run(None, seed=6)
    assert same_bits(weights(one), weights(two))
    assert not same_bits(weights(one), weights(other))


def test_progress_prints_a_lasting_line(capsys, monkeypatch):
    monkeypatch.setattr("cria.progress.SAY_EVERY", 0.0)
    run(None, progress=True, label="pretrain")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == STEPS
    for word in (
        "pretrain: step 20/20",
        "loss ",
        "lr 1.0e-03",
        "tokens/s",
        "00:00 left",
    ):
        assert word in lines[-1]


def test_silence(capsys, tmp_path):
    run(tmp_path)
    run(tmp_path)
    assert capsys.readouterr() == ("", "")


# ── loss and number type ────────────────────────────────────────────────────────


def test_a_clueless_model_loses_log_vocabulary():
    ids = torch.randint(0, 30, (3, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(3, 7, dtype=torch.bool)
    assert lm_loss(torch.zeros(3, 7, 30), ids, mask).item() == pytest.approx(
        math.log(30)
    )


def test_the_loss_is_about_the_next_token():
    ids = torch.tensor([[3, 5, 2, 9]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    foretells = 50.0 * F.one_hot(torch.tensor([[5, 2, 9, 0]]), 30).float()
    repeats = 50.0 * F.one_hot(ids, 30).float()
    assert lm_loss(foretells, ids, mask).item() < 1e-6
    assert lm_loss(repeats, ids, mask).item() > 40


def test_gradient_reaches_exactly_the_tokens_of_the_mask():
    """Answer and EOS count, prompt and padding do not; nothing is shifted away."""
    ids = torch.tensor([[1, 8, 8, 4, 5, 2, 0, 0]])  # BOS, prompt, answer 4 5, EOS 2
    mask = torch.tensor([[0, 0, 0, 1, 1, 1, 0, 0]], dtype=torch.bool)
    logits = torch.zeros(1, 8, 30, requires_grad=True)
    lm_loss(logits, ids, mask).backward()
    pull = logits.grad[0]
    assert pull.abs().sum(-1).nonzero().flatten().tolist() == [2, 3, 4]
    assert [pull[t].argmin().item() for t in (2, 3, 4)] == [4, 5, 2]


def test_what_is_masked_cannot_matter():
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 30, (2, 9), generator=generator)
    logits = torch.randn(2, 9, 30, generator=generator)
    mask = torch.rand(2, 9, generator=generator) < 0.5
    poisoned = torch.where(mask, ids, 29 - ids)
    before = lm_loss(logits, ids, mask)
    assert torch.equal(lm_loss(logits, poisoned, mask), before)
    none = torch.zeros_like(mask)
    assert lm_loss(logits, ids, none).item() == 0.0


def test_auto_is_bfloat16_only_where_it_is_fast(monkeypatch):
    for capabilities, dtype in (
        ({}, torch.float32),
        ({"avx512_f": True, "avx512_bf16": False}, torch.float32),
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert pick_dtype("auto") is dtype
    assert pick_dtype("float32") is torch.float32
    with pytest.raises(ValueError, match="dtype is 'float16'"):
        pick_dtype("float16")


def test_bfloat16_learns_as_float32_does():
    """The loss curves lie on each other; weights stay float32."""
    config = ModelConfig(
        dim=32, n_layers=2, n_heads=4, n_kv_heads=2, vocab_size=30, multiple_of=16
    )

    def loss(model, batch):
        logits = model(batch["ids"], batch["doc_ids"])
        return lm_loss(logits, batch["ids"], batch["loss_mask"]), {}

    curves = {}
    for dtype in ("float32", "bfloat16"):
        model = Llama(config, seed=0)
        rows = train(
            model,
            BATCHES,
            loss,
            OptimConfig(lr=5e-3, warmup_steps=5),
            80,
            dtype=dtype,
            log_every=20,
            progress=False,
        )
        curves[dtype] = [row["loss"] for row in rows]
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert curves["float32"][-1] < 0.6 * curves["float32"][0]
    assert curves["bfloat16"] == pytest.approx(curves["float32"], rel=0.05)
    assert curves["bfloat16"] != curves["float32"], "else autocast did nothing"


@pytest.mark.parametrize("who", ["doc_ids", "branches"])
def test_padding_is_no_token(who):
    batch = {"ids": torch.ones(2, 5, dtype=torch.long)}
    batch[who] = torch.tensor([[0, 0, 1, 1, -1], [0, 1, -1, -1, -1]])

    def loss_fn(model, batch):
        return model(batch["ids"]).square().mean(), {}

    rows = train(Bigram(), lambda step: batch, loss_fn, OPTIM, 4, progress=False)
    assert rows[-1]["tokens"] == 4 * 6
