"""Reward models: what a score depends on, the losses, and a model on disk."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from cria import config, reward
from cria import model as networks
from cria.branching import branched
from cria.config import GRADES, ModelConfig
from cria.model import Llama
from cria.reward import (
    RewardModel,
    margins,
    ranking_loss,
    safety_loss,
    score,
)

EOS = 2
SHAPE = ModelConfig(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=50,
    multiple_of=8,
    max_seq_len=80,
)


def lively(own_logprob=False, seed=0):
    """A reward model whose attention is far from uniform: mistakes show."""
    trunk = Llama(SHAPE)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in trunk.parameters():
            if p.dim() == 2:
                p.normal_(0, 1.5 / math.sqrt(p.shape[1]), generator=generator)
            else:
                p.uniform_(0.5, 1.5, generator=generator)
    return RewardModel(trunk, own_logprob=own_logprob, seed=seed).eval()


def sentence(length, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(4, 50, (length,), generator=generator).tolist()


PROMPTS = [[1, *sentence(n, n)] for n in (3, 9, 1, 6)]
ANSWERS = [
    [[*sentence(n, 100 * i + n), EOS] for n in lengths]
    for i, lengths in enumerate([(4, 7), (2, 12, 5), (1,), (6, 3, 3, 8)])
]


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "own_logprob"])
def model(request):
    return lively(request.param)


@torch.no_grad()
def alone(model, prompt, answer):
    """The score of one answer, alone in a row without padding."""
    row = branched([(prompt, [answer])])
    return model(row.ids, row.branches).item()


@pytest.fixture(scope="module")
def expected(model):
    return [
        [alone(model, prompt, answer) for answer in several]
        for prompt, several in zip(PROMPTS, ANSWERS, strict=True)
    ]


def flat(lists):
    return [x for several in lists for x in several]


# What a score depends on


def test_the_scores_in_these_tests_differ(expected):
    """Else they would agree by accident."""
    assert torch.tensor(flat(expected)).std() > 0.3


@torch.no_grad()
def test_padding_never_changes_a_score(model, expected):
    made = branched(list(zip(PROMPTS, ANSWERS, strict=True)))
    assert (made.branches < 0).any()
    for more, filler in ((0, 0), (13, 0), (13, 17), (13, EOS)):
        branches = F.pad(made.branches, (0, more), value=-1)
        ids = F.pad(made.ids, (0, more)).where(branches >= 0, torch.tensor(filler))
        scores = model(ids, branches)
        assert scores.isfinite().all()
        for line, wanted in zip(scores.tolist(), expected, strict=True):
            assert line[: len(wanted)] == pytest.approx(wanted, abs=1e-5)


@torch.no_grad()
def test_answers_beside_others_are_as_if_alone_in_any_order(model, expected):
    prompt, several, wanted = PROMPTS[3], ANSWERS[3], expected[3]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3), (1, 1)):
        row = branched([(prompt, [several[i] for i in order])])
        line = model(row.ids, row.branches)[0].tolist()
        assert line == pytest.approx([wanted[i] for i in order], abs=1e-5)


@torch.no_grad()
def test_a_score_is_read_at_the_end_of_the_answer():
    """By hand, without branches: the head on the trunk's state at the last token."""
    model = lively()
    for prompt, several in zip(PROMPTS, ANSWERS, strict=True):
        for answer in several:
            states = model.trunk(torch.tensor([prompt + answer]), hidden=True)
            by_hand = states[0, -1] @ model.head.weight[0] + model.head.bias[0]
            assert alone(model, prompt, answer) == pytest.approx(
                by_hand.item(), abs=1e-5
            )


def test_eos_counts(model):
    prompt, answer = PROMPTS[1], ANSWERS[1][0]
    assert answer[-1] == EOS
    ended, cut = score(model, [prompt], [[answer, answer[:-1]]], dtype="float32")[0]
    assert abs(ended - cut) > 0.01


def test_the_prompt_counts(model):
    answer = ANSWERS[0][0]
    found = flat(score(model, PROMPTS[:3], [[answer]] * 3, dtype="float32"))
    assert len({round(r, 2) for r in found}) == 3


# Many at once


@pytest.mark.parametrize("batch_tokens", [1, 30, 8192])
def test_score_is_one_after_the_other(model, expected, batch_tokens):
    found = score(model, PROMPTS, ANSWERS, batch_tokens=batch_tokens, dtype="float32")
    assert [len(line) for line in found] == [len(several) for several in ANSWERS]
    assert flat(found) == pytest.approx(flat(expected), abs=1e-5)


@pytest.mark.parametrize("row", [12, 40, 4096])
def test_more_answers_than_fit_a_row_take_several(model, monkeypatch, row):
    """The best of 32 long answers: together they are longer than the network reads."""
    monkeypatch.setattr(reward, "ROW", row)
    several = [[*sentence(n % 17 + 1, n), EOS] for n in range(30)]
    several += several[3:6]  # said twice: scored once, returned twice
    assert sum(map(len, several)) > 2 * SHAPE.max_seq_len
    prompts, answers = [*PROMPTS[:2], [1, 5]], [several, [], several[::-1]]
    found = score(model, prompts, answers, dtype="float32")
    assert found[1] == []
    for prompt, line, said in zip(prompts, found, answers, strict=True):
        wanted = [alone(model, prompt, answer) for answer in said]
        assert line == pytest.approx(wanted, abs=1e-5)


def test_an_answer_that_the_network_cannot_read_is_one_clear_sentence(model):
    with pytest.raises(ValueError, match="do not fit max_seq_len=80"):
        score(model, [[1, 5]], [[sentence(4, 0), sentence(90, 1)]])


def test_bfloat16_scores_are_float32_ones_with_less_precision(model, expected):
    rough = torch.tensor(flat(score(model, PROMPTS, ANSWERS, dtype="bfloat16")))
    exact = torch.tensor(flat(expected))
    assert 0 < (rough - exact).abs().mean() < 0.1 * exact.std()


def test_scoring_leaves_the_model_as_it_was(model):
    """And what it puts into caches can be trained with afterwards."""
    networks.rope_table.cache_clear()
    before = {name: p.clone() for name, p in model.named_parameters()}
    for mode in (True, False):
        model.train(mode)
        score(model, PROMPTS, ANSWERS)
        assert model.training is mode
    made = branched([(PROMPTS[0], ANSWERS[0])])
    model(made.ids, made.branches).sum().backward()
    assert model.trunk.layers[0].attention.wq.weight.grad.abs().sum() > 0
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    model.zero_grad()


# The head


def test_the_heads_first_weights_have_the_std_of_the_seeds_rule():
    for dim in (64, 512):
        shape = ModelConfig(dim, 1, 2, 1, vocab_size=8, multiple_of=8)
        trunk = Llama(shape)
        weights = [RewardModel(trunk, seed=seed).head.weight for seed in range(40)]
        std = torch.cat(weights).std().item()
        assert std == pytest.approx(1 / math.sqrt(dim + 1), rel=0.05)
        assert RewardModel(trunk).head.bias.item() == 0


def test_scores_start_around_one():
    """No saturated sigmoid: the mean square over heads and answers is of order 1."""
    trunk, seen = Llama(SHAPE, seed=0), []
    for seed in range(30):
        seen += flat(score(RewardModel(trunk, seed=seed), PROMPTS, ANSWERS))
    assert 0.5 < torch.tensor(seen).pow(2).mean() < 2


def test_the_seed_decides_the_head():
    trunk = Llama(SHAPE, seed=0)
    torch.manual_seed(1)
    one = RewardModel(trunk, seed=3).head.weight
    torch.manual_seed(2)
    two, other = RewardModel(trunk, seed=3), RewardModel(trunk, seed=4)
    assert torch.equal(one, two.head.weight)
    assert not torch.equal(one, other.head.weight)


# The network's own log-probability


@torch.no_grad()
def own_logprob(model, prompt, answer):
    """Mean log p of an answer's tokens by the trunk alone, without branches."""
    logp = model.trunk(torch.tensor([prompt + answer])).log_softmax(-1)[0]
    start = len(prompt)
    return sum(
        logp[start + i - 1, token].item() for i, token in enumerate(answer)
    ) / len(answer)


@torch.no_grad()
def test_mean_logprobs_are_those_of_the_trunk_alone(model):
    made = branched(list(zip(PROMPTS, ANSWERS, strict=True)))
    logprobs = model.with_logprobs(made.ids, made.branches, wanted=True)[1]
    assert logprobs.shape == (4, 4)
    for prompt, several, line in zip(PROMPTS, ANSWERS, logprobs.tolist(), strict=True):
        wanted = [own_logprob(model, prompt, answer) for answer in several]
        assert line[: len(several)] == pytest.approx(wanted, abs=1e-4)


@torch.no_grad()
def test_the_own_logprob_is_added_with_its_weight():
    plain, own = lively(), lively(own_logprob=True)
    for weight in (2.0, -0.5, 0.0):
        own.logprob_weight.fill_(weight)
        for prompt, several in zip(PROMPTS, ANSWERS, strict=True):
            extra = weight * own_logprob(own, prompt, several[0])
            wanted = alone(plain, prompt, several[0]) + extra
            assert alone(own, prompt, several[0]) == pytest.approx(wanted, abs=1e-4)


def test_the_weight_is_learnt_and_the_plain_form_has_none():
    own = RewardModel(Llama(SHAPE, seed=0), own_logprob=True, logprob_weight=1.5)
    assert own.logprob_weight.item() == 1.5
    (prompt, several) = PROMPTS[1], ANSWERS[1]
    made = branched([(prompt, several)])
    own(made.ids, made.branches)[0, 0].backward()
    # ∂ score / ∂ weight is the mean log-probability itself
    expected = own_logprob(own, prompt, several[0])
    assert own.logprob_weight.grad.item() == pytest.approx(expected, abs=1e-4)
    assert own.trunk.output.weight.grad.abs().sum() > 0

    plain = RewardModel(Llama(SHAPE, seed=0))
    assert "logprob_weight" not in dict(plain.named_parameters())
    assert "logprob_weight" not in plain.state_dict()
    assert plain.with_logprobs(made.ids, made.branches)[1] is None
    plain(made.ids, made.branches).sum().backward()
    assert plain.trunk.output.weight.grad is None


# eq. (2)


def batch_of_pairs(n=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = 2 * torch.randn(2, n, generator=generator)
    margin = torch.rand(n, generator=generator)
    return chosen, rejected, margin


def test_the_ranking_loss_is_a_loop_over_pairs():
    chosen, rejected, margin = batch_of_pairs()
    total = 0.0
    for c, r, m in zip(*(t.tolist() for t in (chosen, rejected, margin)), strict=True):
        total -= math.log(1 / (1 + math.exp(-(c - r - m))))
    loss, metrics = ranking_loss(chosen, rejected, margin)
    assert loss.item() == pytest.approx(total / 9, rel=1e-5)
    assert metrics["gap"] == pytest.approx((chosen - rejected).mean().item())


def test_a_margin_makes_the_loss_larger():
    chosen, rejected, _ = batch_of_pairs()
    losses = [
        ranking_loss(chosen, rejected, torch.full((9,), m))[0].item()
        for m in (-1.0, 0.0, 1 / 3, 1.0, 3.0)
    ]
    assert losses == sorted(losses) and len(set(losses)) == 5


def test_the_gradient_is_sigma_of_what_is_missing():
    chosen, rejected, margin = batch_of_pairs()
    chosen.requires_grad_(), rejected.requires_grad_()
    ranking_loss(chosen, rejected, margin)[0].backward()
    expected = -torch.sigmoid(margin - (chosen - rejected)) / 9
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


def test_a_large_gap_costs_its_size_and_not_infinity():
    far = torch.tensor([1e4])
    wrong = ranking_loss(-far, far, torch.zeros(1))[0].item()
    assert wrong == pytest.approx(2e4)
    assert ranking_loss(far, -far, torch.zeros(1))[0].item() == 0
    equal = ranking_loss(far, far, torch.zeros(1))
    assert equal[0].item() == pytest.approx(math.log(2))


def test_accuracy_counts_right_pairs_and_half_of_a_tie():
    chosen = torch.tensor([1.0, 1.0, 1.0, 1.0])
    rejected = torch.tensor([0.0, 2.0, 1.0, 0.9])
    margin = torch.full((4,), 5.0)  # a margin is no part of being right
    assert ranking_loss(chosen, rejected, margin)[1]["accuracy"] == 0.625


@pytest.mark.parametrize(
    "shapes",
    [
        [(4, 1), (4,), (4,)],
        [(4,), (4, 1), (4,)],
        [(4,), (4,), (4, 1)],
        [(4,), (4,), (1,)],
        [(4,), (4,), ()],
        [(1,), (4,), (4,)],
        [(4, 1), (4, 1), (4, 1)],
        [(), (), ()],
    ],
)
def test_shapes_that_would_broadcast_are_refused(shapes):
    with pytest.raises(ValueError, match=r"one shape \(B,\)"):
        ranking_loss(*map(torch.zeros, shapes))


def test_margins_by_grade():
    row = (3.0, 2.0, 1.0, 0.5)
    assert margins([*GRADES, None], row).tolist() == [3, 2, 1, 0.5, 0]
    assert margins([None, GRADES[3], GRADES[0]], row).tolist() == [0, 0.5, 3]
    assert margins([], row).shape == (0,)
    assert margins([None], row).dtype is torch.float32
    with pytest.raises(ValueError, match="no grade 'much better'"):
        margins([GRADES[0], "much better"], row)


@pytest.mark.parametrize("row", [(1.0, 2.0, 3.0), (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_a_row_of_margins_has_a_number_for_each_grade(row):
    with pytest.raises(ValueError):
        margins([GRADES[0]], row)


def test_the_rows_of_table_27_by_name():
    for name, row in reward.MARGINS.items():
        assert torch.equal(margins(list(GRADES), name), margins(list(GRADES), row))
        written = config.load("course").reward.margins[name]
        assert row == pytest.approx(written, abs=1e-6), "the presets say the same"
    with pytest.raises(ValueError, match="no row 'middling'"):
        margins(list(GRADES), "middling")
    with pytest.raises(ValueError, match="4 numbers"):
        margins(list(GRADES), (1, 2, 3))


# The safety loss


def test_safety_loss_on_numbers_of_our_own():
    scores = torch.tensor([[0.0, 2.0], [-1.0, 3.0]])
    safe = torch.tensor([[1, 0], [0, -1]])
    by_hand = (
        -math.log(0.5)  # σ(0), safe
        + (
            math.log(1 + math.exp(2.0))  # −log(1 − σ(2)), unsafe
            + math.log(1 + math.exp(-1.0))  # −log(1 − σ(−1)), unsafe
        )
        / 2
    ) / 2
    assert safety_loss(scores, safe).item() == pytest.approx(by_hand, rel=1e-6)


def test_few_unsafe_answers_weigh_as_much_as_many_safe_ones():
    """Doubling the safe answers changes nothing; one class alone is a plain mean."""
    scores, safe = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([1, 1, 0])
    again = safety_loss(torch.cat([scores, scores[:2]]), torch.tensor([1, 1, 0, 1, 1]))
    assert again.item() == pytest.approx(safety_loss(scores, safe).item())
    alone = safety_loss(scores[:2], safe[:2])
    assert alone.item() == pytest.approx(-scores[:2].sigmoid().log().mean().item())


def test_what_has_no_label_has_no_part_in_the_safety_loss():
    scores = torch.tensor([[0.5, -2.0], [1.0, 0.3]], requires_grad=True)
    safe = torch.tensor([[1, -1], [-1, 0]])
    loss = safety_loss(scores, safe)
    poisoned = scores.detach().where(safe >= 0, torch.tensor(1e6))
    assert safety_loss(poisoned, safe).item() == loss.item()
    loss.backward()
    assert (scores.grad == 0).tolist() == (safe < 0).tolist()
    assert scores.grad[0, 0] < 0 < scores.grad[1, 1], "safe up, unsafe down"

    scores.grad = None
    none = safety_loss(scores, torch.full((2, 2), -1))
    none.backward()
    assert none.item() == 0 and (scores.grad == 0).all()


# Both scores as one (§3.2.3)


def test_the_gate_has_four_cases():
    """Safety prompts, and answers below the gate, are judged on safety alone."""
    gate = math.log(0.15 / 0.85)
    r_safety = torch.tensor([3.0, -3.0, 3.0, -3.0])
    r_helpful = torch.full((4,), 9.0)
    asked = torch.tensor([True, True, False, False])
    found = reward.combine_rewards(r_safety, r_helpful, asked)
    assert found.tolist() == [3.0, -3.0, 9.0, -3.0]

    near = torch.tensor([gate - 1e-4, gate, gate + 1e-4])
    no = torch.zeros(3, dtype=torch.bool)
    found = reward.combine_rewards(near, torch.full((3,), 9.0), no)
    assert found.tolist() == [near[0].item(), 9.0, 9.0], "at the gate is not below"
    far = torch.tensor([-200.0, -300.0])  # σ is 0 for both: they still differ
    assert torch.equal(reward.combine_rewards(far, far * 0, no[:2]), far)


# On disk


def test_saved_and_loaded_it_gives_the_same_scores_to_the_bit(model, tmp_path):
    before = score(model, PROMPTS, ANSWERS)
    reward.save(model, tmp_path / "stage" / "model")
    for folder in (tmp_path / "stage" / "model", tmp_path / "stage"):
        again = reward.load(folder)
        assert not again.training
        assert score(again, PROMPTS, ANSWERS) == before
        weights = again.state_dict()
        assert weights.keys() == model.state_dict().keys()
        assert all(torch.equal(w, weights[n]) for n, w in model.state_dict().items())


def test_a_later_model_takes_the_place_of_an_earlier_one(tmp_path):
    first, second = lively(own_logprob=True), lively(seed=1)
    reward.save(first, tmp_path)
    reward.save(second, tmp_path)
    again = reward.load(tmp_path)
    assert again.logprob_weight is None
    assert score(again, PROMPTS, ANSWERS) == score(second, PROMPTS, ANSWERS)


def test_no_head_of_an_earlier_model_survives_beside_a_new_trunk(tmp_path, monkeypatch):
    """Killed between trunk and head, there is no reward model: not a mixture."""
    reward.save(lively(), tmp_path)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(reward, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        reward.save(lively(seed=1), tmp_path)
    with pytest.raises(FileNotFoundError, match="no reward model"):
        reward.load(tmp_path)


def test_a_missing_model_or_head_is_one_clear_sentence(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(FileNotFoundError, match="holds no reward model") as error:
            reward.load(folder)
        assert "\n" not in str(error.value)
    reward.save(lively(), tmp_path)
    (tmp_path / reward.HEAD).unlink()
    with pytest.raises(FileNotFoundError, match=reward.HEAD):
        reward.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 5, 40, -1])
def test_a_damaged_head_is_one_clear_sentence(tmp_path, keep):
    reward.save(lively(), tmp_path)
    path = tmp_path / reward.HEAD
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="is damaged") as error:
        reward.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("change", ["empty", "part", "more", "narrow"])
def test_the_head_of_another_model_is_one_clear_sentence(tmp_path, change):
    """Never a silent head of random weights."""
    reward.save(lively(), tmp_path)
    weights = load_file(tmp_path / reward.HEAD)
    changed = {
        "empty": {},
        "part": {"head.weight": weights["head.weight"]},
        "more": weights | {"trunk.norm.weight": torch.ones(32)},
        "narrow": weights | {"head.weight": torch.ones(1, 31)},
    }[change]
    save_file(changed, tmp_path / reward.HEAD)
    with pytest.raises(ValueError, match="no head of the model beside it") as error:
        reward.load(tmp_path)
    assert "\n" not in str(error.value)
