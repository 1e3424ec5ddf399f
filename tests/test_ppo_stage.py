"""What the stage `ppo_v5` gives to PPO: prompts, texts, rewards, and a start."""

from dataclasses import replace

import pytest
from ppo_toys import DEV, SHAPE, TOY, Vocabulary

from cria import config, ppo_stage, world
from cria.model import Llama
from cria.ppo_stage import asked, best_start, texts

SMOKE = config.load("smoke")
VILLAGE = world.load()


def test_every_iteration_asks_other_training_prompts_of_the_same_kinds():
    ask = asked(VILLAGE, SMOKE, 40, seed=0)
    first, second = ask(0), ask(1)
    assert len(first) == 40 and {p.split for p in first + second} == {"fresh"}
    assert [p.id for p in first] == [p.id for p in ask(0)]
    assert [p.id for p in first] != [p.id for p in second]
    assert [p.id for p in first] != [p.id for p in asked(VILLAGE, SMOKE, 40, 1)(0)]
    shares = SMOKE.ppo.kinds
    for kind, share in shares.items():
        assert sum(p.kind == kind for p in first) == pytest.approx(40 * share, abs=1)


class Words(Vocabulary):
    """Each character a token: enough to pack texts."""

    def encode(self, text, bos=False, eos=False):
        return [1] * bos + [3 + ord(c) % 9 for c in text] + [2] * eos


def test_texts_are_enough_rows_for_every_gradient_step():
    c = replace(SMOKE.ppo, text_coef=0.3, text_rows=2, iterations=3)
    batch = texts(VILLAGE, replace(SMOKE, ppo=c), Words(), seed=0)
    steps = c.iterations * c.epochs * c.batch_size // c.minibatch_size
    seen = [batch(k) for k in range(steps)]
    assert all(len(b["ids"]) == 2 for b in seen)
    assert max(b["ids"].shape[1] for b in seen) == SMOKE.rejection.seq_len
    rows = [str(row.tolist()) for b in seen for row in b["ids"]]
    assert len(set(rows)) == len(rows), "none is read twice"


def test_no_texts_where_they_weigh_nothing():
    c = replace(SMOKE.ppo, text_coef=0.0)
    assert texts(VILLAGE, replace(SMOKE, ppo=c), Words(), seed=0) is None


DIFFERENT = [replace(prompt, id=f"dev-{i}") for i, prompt in enumerate(DEV)]


def started(scores, dev=DIFFERENT):
    """The best start of models with these scores, prompt by prompt, oldest first."""
    models = {name: Llama(SHAPE, seed=1).eval() for name in scores}
    turn = iter(scores.values())

    def score(_, answers):
        given = next(turn)
        return [given[i % len(given)] for i in range(len(answers))]

    return best_start(models, score, Vocabulary(), dev, TOY, seed=0)


def test_the_start_is_the_candidate_that_wins():
    """Whichever of them it is: each is the best by a reward of its own."""
    for best in ("v1", "v2", "v3"):
        taken, wins = started({n: [float(n == best)] for n in ("v1", "v2", "v3")})
        assert taken == best
        assert wins == {n: 0.5 if n == best else 0.0 for n in ("v1", "v2", "v3")}


def test_answers_of_each_candidate_are_scored():
    models = {f"v{i}": Llama(SHAPE, seed=i).eval() for i in (1, 2)}
    seen: list[list] = []
    best_start(
        models, lambda _, a: seen.append(a) or [0.0] * len(a), Vocabulary(), DEV, TOY, 0
    )
    assert len(seen) == 2 and seen[0] != seen[1]


@pytest.mark.parametrize(
    ("old", "taken"),
    [
        ([1.0, -1.0], "new"),  # as often ahead as behind
        ([1.0, 1.0, 1.0, -1.0], "old"),  # ahead on three of four of 16: beyond chance
        ([1.0, 1.0, 1.0, -1.0, -1.0, 0.0, 0.0, 0.0], "new"),  # ahead, but within it
        ([9.0, -1.0, -1.0, -1.0], "new"),  # far ahead on few prompts: no win
        ([0.0], "new"),  # of equals the newest
    ],
)
def test_who_wins_on_more_prompts_is_better_and_chance_is_no_lead(old, taken):
    best, wins = started({"old": old, "new": [0.0]})
    assert best == taken and wins[taken] == 0.5
    if taken == "new":
        ahead = sum(x > 0 for x in old) + sum(x == 0 for x in old) / 2
        assert wins["old"] == pytest.approx(ahead / len(old))


def test_a_prompt_asked_again_is_no_new_evidence():
    """Three prompts of four won, each asked twelve times, tell as little as once."""
    scores = {"old": [1.0, 1.0, 1.0, -1.0], "new": [0.0]}
    assert started(scores, dev=DIFFERENT * 3)[0] == "old", "twelve of 16, thrice"
    assert started(scores, dev=DEV[:4] * 12)[0] == "new"


def test_where_each_is_beaten_by_another_the_newest_is_taken():
    """Each wins on two of three prompts against one other, round and round."""
    turns = {"v1": [0.0, 1.0, 2.0], "v2": [1.0, 2.0, 0.0], "v3": [2.0, 0.0, 1.0]}
    many = [replace(DEV[i % 4], id=f"dev-{i}") for i in range(144)]
    assert started(turns, dev=many)[0] == "v3"
    for missing, taken in (("v1", "v3"), ("v2", "v1"), ("v3", "v2")):
        two = {name: scores for name, scores in turns.items() if name != missing}
        assert started(two, dev=many)[0] == taken, "one of two is beaten"


def test_the_scorer_is_the_rewards_of_rejection_sampling(monkeypatch):
    """One answer a prompt, in order, with the gate it was given."""
    told = []

    def rewards(rms, vocabulary, prompts, answers, gate):
        told.append((rms, prompts, answers, gate))
        return [[float(sum(a)) for a in several] for several in answers]

    monkeypatch.setattr(ppo_stage, "rewards", rewards)
    score = ppo_stage.scorer(("helpful", "safety"), Vocabulary(), 0.4)
    assert score(DEV[:2], [[1, 2], [3]]) == [3.0, 3.0]
    assert told == [(("helpful", "safety"), DEV[:2], [[[1, 2]], [[3]]], 0.4)]
