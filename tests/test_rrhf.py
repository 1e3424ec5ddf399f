"""RRHF: its loss against a plain loop, what it pushes, and what training does."""

import pytest
import torch

from cria import chat, rrhf, tokenizer, world
from cria.config import ModelConfig, OptimConfig, RRHFConfig
from cria.model import Llama
from cria.rrhf import Ranked, answer_logprobs, ranked, rrhf_loss, train_rrhf
from cria.selection import Sample
from cria.world.prompts import prompts


def by_hand(p, r, best):
    total = 0.0
    for row_p, row_r, log_best in zip(p, r, best, strict=True):
        for i, a in enumerate(row_r):
            for j, b in enumerate(row_r):
                if a < b:
                    total += max(0.0, row_p[i] - row_p[j])
        total -= log_best
    return total / len(p)


def test_the_loss_is_the_loop():
    generator = torch.Generator().manual_seed(0)
    p, r = (torch.randn(5, 4, generator=generator) for _ in range(2))
    r[0, 1] = r[0, 2]  # a tie says nothing
    best = torch.randn(5, generator=generator)
    loss, _ = rrhf_loss(p, r, best)
    expected = by_hand(p.tolist(), r.tolist(), best.tolist())
    assert loss.item() == pytest.approx(expected, abs=1e-5)


def test_answers_in_the_right_order_cost_nothing():
    p = torch.tensor([[-3.0, -2.0, -1.0]])
    _, metrics = rrhf_loss(p, torch.tensor([[0.0, 1.0, 2.0]]), torch.zeros(1))
    assert metrics == {"ranking": 0.0, "in_order": 1.0}
    _, metrics = rrhf_loss(p, torch.tensor([[2.0, 1.0, 0.0]]), torch.zeros(1))
    assert metrics["ranking"] == pytest.approx(4.0) and metrics["in_order"] == 0.0


def test_the_gradient_lifts_the_better_and_lowers_the_worse():
    p = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    loss, _ = rrhf_loss(p, torch.tensor([[0.0, 1.0]]), torch.zeros(1))
    loss.backward()
    assert p.grad.tolist() == [[1.0, -1.0]]


def test_only_the_ranking_of_the_rewards_counts():
    p = torch.randn(3, 5, generator=torch.Generator().manual_seed(1))
    r = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    losses = [rrhf_loss(p, x, torch.zeros(3))[0].item() for x in (r, 7 * r + 3)]
    assert losses[0] == losses[1]


def test_shapes_that_would_broadcast_are_refused():
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        rrhf_loss(torch.zeros(2, 3), torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(ValueError, match=r"\(B, K\)"):
        rrhf_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1))


# From log-probabilities to training

PIECES = 340
SHAPE = ModelConfig(16, 1, 2, 1, vocab_size=PIECES, multiple_of=8, max_seq_len=128)
FAST = RRHFConfig(2, 30, OptimConfig(lr=1e-2, warmup_steps=1))
ASKED = prompts(world.load(), "greet", "train", 4)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    texts = [turn for prompt in ASKED for _, turn in prompt.turns]
    path = tmp_path_factory.mktemp("words") / "tokenizer.model"
    return tokenizer.train([*texts, "Yes, no.", "0 1 2 3 4 5"], PIECES, path)


def rows():
    """Three prompts with 3, 1 and 2 answers of unequal length."""
    return [
        Ranked([1, 5, 6], ((7, 8, 2), (9, 2), (10, 11, 12, 2)), (0.1, 0.9, 0.5)),
        Ranked([1, 6], ((8, 8, 2),), (0.3,)),
        Ranked([1, 7, 7, 7], ((9, 2), (7, 2)), (-1.0, -2.0)),
    ]


def alone(model, prompt, answer):
    """log π of one answer, as if there were no other."""
    with torch.inference_mode():
        logp = model(torch.tensor([[*prompt, *answer]]))[0].log_softmax(-1)
    at = len(prompt) - 1
    return sum(float(logp[at + i, token]) for i, token in enumerate(answer))


def test_answers_in_one_row_have_the_log_probabilities_they_have_alone():
    model, several = Llama(SHAPE, seed=1), rows()
    batch = rrhf.batches(several, 3, 0)(0)
    sums, lengths = answer_logprobs(model, batch["ids"], batch["branches"])
    by_prompt = {len(p.answers): p for p in several}
    for line, n, given in zip(sums, lengths, batch["rewards"], strict=True):
        p = by_prompt[int((n > 0).sum())]
        expected = [alone(model, p.prompt, a) for a in p.answers]
        assert line[: len(expected)].tolist() == pytest.approx(expected, abs=1e-4)
        assert n[: len(expected)].tolist() == [len(a) for a in p.answers]
        assert given[: len(expected)].tolist() == pytest.approx(list(p.rewards))
        assert given[len(expected) :].isnan().all()


def test_missing_answers_change_neither_loss_nor_gradient():
    """Poison: whatever stands where a prompt has no answer, nothing moves."""
    r = torch.tensor([[0.0, 1.0, float("nan")]])
    found = []
    for value in (0.0, 50.0):
        p = torch.tensor([[-1.0, -2.0, value]], requires_grad=True)
        loss, metrics = rrhf_loss(p, r, torch.zeros(1))
        loss.backward()
        found.append((loss.item(), metrics, p.grad.tolist()))
    assert found[0] == found[1] and found[0][2] == [[1.0, -1.0, 0.0]]
    two, _ = rrhf_loss(torch.tensor([[-1.0, -2.0]]), r[:, :2], torch.zeros(1))
    assert two.item() == found[0][0]


def test_every_epoch_sees_every_prompt_once_in_another_order():
    several = [Ranked([1, 5 + i], ((9, 2), (8, 2)), (0.0, 1.0)) for i in range(12)]
    batch = rrhf.batches(several, 4, 3)

    def epoch(n):
        return [int(x) for s in range(3) for x in batch(3 * n + s)["ids"][:, 1]]

    assert sorted(epoch(0)) == sorted(epoch(1)) == list(range(5, 17))
    assert epoch(0) != epoch(1)
    assert torch.equal(batch(4)["ids"], rrhf.batches(several, 4, 3)(4)["ids"])
    assert epoch(0) != [int(x) for s in range(3) for x in
                        rrhf.batches(several, 4, 4)(s)["ids"][:, 1]]  # fmt: skip


def test_a_batch_larger_than_the_prompts_is_refused():
    with pytest.raises(ValueError, match="3 prompts"):
        rrhf.batches(rows(), 4, 0)


def test_samples_become_rows_with_each_answer_once(vocabulary):
    found = [Sample(ASKED[0], ids, 1, score) for ids, score in
             (((9, 2), 0.5), ((8, 2), 0.1), ((9, 2), 0.5))]  # fmt: skip
    found.append(Sample(ASKED[1], (7, 2), 1, -1.0))
    one, other = ranked(found, vocabulary)
    assert one.answers == ((9, 2), (8, 2)) and one.rewards == (0.5, 0.1)
    assert other.answers == ((7, 2),)
    assert one.prompt == chat.prompt_ids(vocabulary, ASKED[0].messages)


def test_training_puts_the_answers_in_order_and_lifts_the_best():
    several = rows() * 2
    model = Llama(SHAPE, seed=1)
    metrics = train_rrhf(model, several, FAST, seed=0, dtype="float32", progress=False)
    assert not model.training
    assert metrics[-1]["in_order"] > metrics[0]["in_order"]
    for p in rows():
        means = [alone(model, p.prompt, a) / len(a) for a in p.answers]
        order = sorted(range(len(means)), key=means.__getitem__)
        assert order == sorted(range(len(means)), key=p.rewards.__getitem__)
    best = [max(zip(p.rewards, p.answers, strict=True))[1] for p in several]
    fresh = Llama(SHAPE, seed=1)
    for p, a in zip(several, best, strict=True):
        assert alone(model, p.prompt, a) > alone(fresh, p.prompt, a)


def test_the_loss_of_a_training_step_is_that_of_the_answers_alone(monkeypatch):
    """Prompts with fewer answers than their neighbours are ranked by what they have."""
    seen = []

    def train(model, batch, loss_fn, *args, **options):
        seen.append(loss_fn(model, batch(0))[0].item())

    monkeypatch.setattr(rrhf, "train", train)
    model, several = Llama(SHAPE, seed=1), rows()
    train_rrhf(model, several, RRHFConfig(3, 1, FAST.optim), seed=0)
    p, r, best = [], [], []
    for one in several:
        logp = [alone(model, one.prompt, a) for a in one.answers]
        p.append([x / len(a) for x, a in zip(logp, one.answers, strict=True)])
        r.append(list(one.rewards))
        best.append(logp[one.rewards.index(max(one.rewards))])
    assert seen == [pytest.approx(by_hand(p, r, best), abs=1e-3)]


def test_the_same_seed_gives_the_same_model():
    def trained(seed):
        model = Llama(SHAPE, seed=1)
        c = RRHFConfig(2, 2, FAST.optim)
        train_rrhf(model, rows() * 2, c, seed=seed, dtype="float32", progress=False)
        return torch.cat([p.flatten() for p in model.state_dict().values()])

    assert torch.equal(trained(1), trained(1))
    assert not torch.equal(trained(1), trained(2))
