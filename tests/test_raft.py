"""RAFT, from its own description, keeps what our selection keeps."""

from random import Random

from cria import world
from cria.raft import raft, raft_data
from cria.selection import Sample, best
from cria.world.prompts import prompts

ASKED = prompts(world.load(), "sum", "train", 5)


def samples(seed, ties=False):
    rng = Random(seed)
    score = (lambda: float(rng.randrange(3))) if ties else rng.random
    return [Sample(p, (i,), 1, score()) for p in ASKED for i in range(6)]


def kept(found):
    """RAFT over samples that lie there."""
    drawn = {p.id: [s for s in found if s.prompt == p] for p in ASKED}
    pairs = raft_data(ASKED, lambda x, k: drawn[x.id][:k], lambda x, y: y.score, 6)
    return [y for _, y in pairs]


def test_it_keeps_the_answers_that_best_of_k_keeps():
    for seed in range(20):
        found = samples(seed, ties=seed % 2 == 0)
        assert kept(found) == best(found)


def test_each_prompt_is_asked_k_times_and_keeps_its_own_answer():
    asked = []

    def draw(x, k):
        asked.append((x, k))
        return [f"{x}{i}" for i in range(k)]

    found = raft_data(["a", "b"], draw, lambda x, y: -int(y[1]), 4)
    assert found == [("a", "a0"), ("b", "b0")] and asked == [("a", 4), ("b", 4)]


def test_every_iteration_draws_from_the_newest_model():
    """A model is a number; it answers near itself; larger answers are rewarded."""
    trace = []

    def draw(model, x, k):
        trace.append(model)
        return [model + i for i in range(k)]

    made = raft(
        0,
        [["x"], ["y"], ["z"]],
        draw,
        lambda x, y: y,
        lambda model, data: max(y for _, y in data),
        3,
    )
    assert trace == [0, 2, 4] and made == 6
