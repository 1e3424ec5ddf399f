"""Processes of our own, and that an interrupt reaches them wherever they are."""

import json
import sys
import time
from contextlib import suppress

import pytest
import torch
from safetensors import safe_open

from cria import crew
from cria.config import OptimConfig
from cria.resume import CHECKPOINT
from cria.training import train

SWALLOWS = """
import time
try:
    print("importing", flush=True)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        time.sleep(0.01)
except BaseException:
    pass
"""


def never_ready(pipe):
    """A process that is still starting, and in which a KeyboardInterrupt is lost."""
    pipe.send(("said", "starting"))
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(60)


def sleeper(pipe, folder):
    """Sleeps; "import": after a module that swallows what is raised while it runs."""

    def do(asked):
        if asked == "import":
            sys.path.insert(0, str(folder))
            import swallows  # noqa: F401
        print("asleep")
        time.sleep(60)
        return ("slept",)

    crew.serve(pipe, do)


def trainee(pipe, folder):
    """Trains for a minute; an interrupted training finishes its step and saves it."""

    def do(asked):
        model = torch.nn.Linear(2, 2)
        torch.set_num_threads(1)

        def loss_fn(model, batch):
            if int(batch["step"]) == 2:
                print("training")
            time.sleep(0.05)
            return model(torch.ones(1, 2)).square().mean(), {}

        train(
            model,
            lambda step: {"step": torch.tensor([step])},
            loss_fn,
            OptimConfig(lr=0.1, warmup_steps=1),
            1200,
            seed=0,
            out=folder,
        )
        return ("trained",)

    crew.serve(pipe, do)


def hear(worker, line):
    """Wait until the worker says so."""
    end = time.monotonic() + 60
    while time.monotonic() < end and crew.heard([worker], 60):
        if worker.pipe.recv() == ("said", line):
            return
    raise AssertionError(f"the worker never said {line!r}")


@pytest.fixture
def worker_of():
    """Start a worker of ours; it is let go in the end."""
    hands = []

    def start(work, *arguments):
        hands.append(crew.Worker(work, arguments))
        return hands[-1]

    yield start
    crew.dismiss(hands)


@pytest.mark.parametrize(
    ("asked", "line"), [("import", "importing"), ("sleep", "asleep")]
)
def test_an_interrupt_is_never_lost(tmp_path, worker_of, asked, line):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    worker = worker_of(sleeper, tmp_path)
    worker.start("it", asked)
    hear(worker, line)
    began = time.monotonic()
    crew.stop([worker])
    assert time.monotonic() - began < crew.PATIENCE / 3
    worker.start("again", "sleep")  # it has said that it stopped, and lives
    hear(worker, "asleep")


def test_who_is_still_starting_is_not_waited_for(worker_of):
    worker = worker_of(never_ready)
    worker.start("it")
    hear(worker, "starting")
    began = time.monotonic()
    crew.stop([worker])
    worker.process.join(5)
    assert not worker.process.is_alive()
    assert time.monotonic() - began < crew.PATIENCE / 3


def test_a_training_that_is_interrupted_saves_its_step(tmp_path, worker_of):
    worker = worker_of(trainee, tmp_path)
    worker.start("it")
    hear(worker, "training")
    crew.stop([worker])
    with safe_open(tmp_path / CHECKPOINT, "pt") as kept:
        step = json.loads(kept.metadata()["state"])["step"]
    assert 2 <= step < 250, "not only every 250 steps, and not torn apart"


def test_a_process_that_has_ended_keeps_nobody_from_stopping(tmp_path, worker_of):
    gone, other = worker_of(sleeper, tmp_path), worker_of(sleeper, tmp_path)
    for worker in (gone, other):
        worker.start("it", "sleep")
        hear(worker, "asleep")
    gone.process.kill()
    began = time.monotonic()
    crew.stop([gone, other])
    assert time.monotonic() - began < crew.PATIENCE / 3
