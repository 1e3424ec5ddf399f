"""A batch of experience: what PPO learns from, before it has learnt anything."""

from dataclasses import replace

import pytest
import torch
from ppo_toys import EOS, SHAPE, TOY, Vocabulary, ask, is_right

from cria.actor_critic import ActorCritic
from cria.model import Llama
from cria.ppo import whiten
from cria.ppo_rollout import experience, lay_out

ASKED = ask(32)(0)
CLEAR = {"beta": 0.0, "gamma": 1.0, "lam": 1.0, "no_eos_penalty": 0.0}


def policy(seed=0):
    """Sharp enough that tokens differ; EOS comes now and then."""
    model = Llama(SHAPE, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(4)
    return model.eval()


def varied(asked, answers):
    """Scores with a spread, far from 0: as a reward model's are."""
    return [5.0 + 0.3 * sum(a) for a in answers]


def made(reference=None, score=varied, head=False, seed=1, **changes):
    actor = ActorCritic(policy())
    if head:
        rng = torch.Generator().manual_seed(2)
        torch.nn.init.normal_(actor.value.weight, generator=rng)
    reference = reference or policy()
    config = replace(TOY, **changes)
    found = experience(actor, reference, score, Vocabulary(), ASKED, config, seed)
    return actor, found


def to_come(batch, x):
    """The sum of x over this action and the later ones: (B, T)."""
    x = torch.where(batch["mask"], x, 0.0)
    return torch.where(batch["mask"], x.flip(1).cumsum(1).flip(1), 0.0)


def test_prompts_and_answers_stand_side_by_side():
    laid = lay_out([[1, 3], [1, 4, 4, 4]], [[8, EOS], [9]])
    assert laid["ids"].tolist() == [[1, 3, 8, EOS, 0], [1, 4, 4, 4, 9]]
    assert laid["doc_ids"].tolist() == [[0, 0, 0, 0, -1], [0, 0, 0, 0, 0]]
    assert laid["mask"].long().tolist() == [[0, 0, 1, 1, 0], [0, 0, 0, 0, 1]]


def test_in_the_first_mini_batches_every_ratio_is_1():
    """The passes before and within the update see other widths: the same numbers."""
    actor, known = made(head=True)
    widths = set()
    for part in known.minibatches(8, seed=0):
        logprobs, values, _ = actor(part["ids"], part["doc_ids"], part["mask"])
        ratio = (logprobs - part["logprobs"]).exp()
        assert (ratio - 1).abs().max() < 1e-5
        torch.testing.assert_close(values, part["values"], atol=1e-5, rtol=0)
        widths.add(part["ids"].shape[1])
    assert len(widths) > 1


def test_at_the_start_the_kl_to_the_reference_is_0():
    _, known = made()
    assert known.kl.abs().max() < 1e-5


def test_the_kl_to_another_model_is_not_0_and_costs_beta():
    """The returns with and without β differ by the KL that is still to come."""
    other = policy(seed=4)
    _, free = made(other, **CLEAR)
    _, charged = made(other, **CLEAR | {"beta": 0.25})
    assert free.kl.abs().mean() > 0.1
    assert torch.equal(free.scores, charged.scores), "raw scores know nothing of it"
    gap = (free.batch["returns"] - charged.batch["returns"]) / 0.25
    first = free.batch["mask"].float().argmax(1, keepdim=True)
    torch.testing.assert_close(
        gap.gather(1, first)[:, 0], free.kl, atol=1e-4, rtol=1e-4
    )


def test_without_critic_and_kl_every_action_is_worth_the_whitened_score():
    _, known = made(**CLEAR)
    mask = known.batch["mask"]
    expected = torch.where(mask, whiten(known.scores)[:, None], 0.0)
    torch.testing.assert_close(known.batch["returns"], expected)
    assert known.scores.mean() > 5, "the raw scores are kept for the metrics"


def test_the_penalty_hits_exactly_the_answers_without_an_end():
    """It is taken off after whitening: the others' rewards do not move at all."""
    _, calm = made(**CLEAR)
    _, strict = made(**CLEAR | {"no_eos_penalty": 5.0})
    late = ~calm.finished
    assert 0 < late.sum() < len(late)
    ends = (calm.batch["ids"] == EOS) & calm.batch["mask"]
    assert torch.equal(ends.any(1), calm.finished)
    gap = calm.batch["returns"] - strict.batch["returns"]
    expected = torch.where(calm.batch["mask"] & late[:, None], 5.0, 0.0)
    torch.testing.assert_close(gap, expected)


def test_advantages_are_whitened_over_the_actions_and_0_elsewhere():
    _, known = made(policy(seed=4), head=True, beta=0.1)
    mask, a = known.batch["mask"], known.batch["advantages"]
    assert a[mask].mean() == pytest.approx(0, abs=1e-5)
    assert a[mask].std(unbiased=False) == pytest.approx(1, abs=1e-4)
    for name in ("advantages", "returns", "logprobs", "values"):
        assert (known.batch[name][~mask] == 0).all()
        assert not known.batch[name].requires_grad


def test_mini_batches_are_the_batch_in_parts():
    _, known = made()
    parts = known.minibatches(12, seed=3)
    assert [len(p["ids"]) for p in parts] == [12, 12, 8]
    for name, whole in known.batch.items():
        rows = [
            r[m].tolist()
            for p in parts
            for r, m in zip(p[name], p["mask"], strict=True)
        ]
        again = [r[m].tolist() for r, m in zip(whole, known.batch["mask"], strict=True)]
        assert sorted(map(str, rows)) == sorted(map(str, again))
    for part in parts:  # no column of padding alone
        assert (part["doc_ids"] >= 0).any(0).all()
    other = known.minibatches(12, seed=4)
    assert not torch.equal(parts[0]["ids"], other[0]["ids"])


def test_the_summary_speaks_of_answers():
    _, known = made(policy(seed=4))
    told = known.summary()
    lengths = known.batch["mask"].sum(1)
    assert told["length"] == pytest.approx(float(lengths.float().mean()))
    assert told["unfinished"] == pytest.approx(float((~known.finished).float().mean()))
    assert told["score"] == pytest.approx(float(known.scores.mean()))
    assert told["kl"] == pytest.approx(float(known.kl.mean()))
    assert 0 < told["entropy"] < torch.tensor(float(SHAPE.vocab_size)).log()


def test_the_seed_decides():
    same, other = made(seed=1)[1], made(seed=2)[1]
    again = made(seed=1)[1]
    assert all(torch.equal(same.batch[k], again.batch[k]) for k in same.batch)
    assert not torch.equal(
        same.batch["mask"].sum(1), other.batch["mask"].sum(1)
    ) or not torch.equal(same.batch["ids"], other.batch["ids"])


def test_a_score_is_asked_for_each_answer_with_its_prompt():
    """The rows are not mixed up by sorting them by length."""
    seen = []

    def score(asked, answers):
        seen.extend(zip(asked, answers, strict=True))
        return is_right(asked, answers)

    _, known = made(score=score)
    assert [p for p, _ in seen] == ASKED
    for (_, answer), ids, mask in zip(
        seen, known.batch["ids"], known.batch["mask"], strict=True
    ):
        assert ids[mask].tolist() == list(answer)
