"""A policy with a value head: one pass, and no number from outside the actions."""

import torch

from cria.actor_critic import ActorCritic, answer_logprobs
from cria.config import ModelConfig
from cria.model import Llama
from cria.ppo_rollout import lay_out
from cria.sampling import generate

SHAPE = ModelConfig(32, 2, 4, 2, vocab_size=40, multiple_of=8, max_seq_len=64)
EOS = 2
PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11], [1, 4], [1, 12, 13, 14]]
ANSWERS = [[20, 21, EOS], [22, EOS], [23, 24, 25, 26, 27, EOS], [28]]


def policy(seed=0):
    """Weights large enough that every token matters to those behind it."""
    model = Llama(SHAPE, seed=seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(6)
    return model.eval()


def actor(seed=0):
    """With a value head that has learnt something."""
    made = ActorCritic(policy(seed))
    torch.nn.init.normal_(made.value.weight, generator=torch.Generator().manual_seed(1))
    return made


def read(net, batch):
    return net(batch["ids"], batch["doc_ids"], batch["mask"])


def test_a_new_value_head_says_0_everywhere():
    _, values, _ = read(ActorCritic(policy()), lay_out(PROMPTS, ANSWERS))
    assert (values == 0).all()


def test_log_probs_are_those_of_the_models_logits_row_by_row():
    """Each answer alone and without padding: the same numbers, and the entropy too."""
    net = actor()
    logprobs, values, entropy = read(net, lay_out(PROMPTS, ANSWERS))
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        logp = net.policy(torch.tensor([prompt + answer]))[0].log_softmax(-1)
        states = net.policy(torch.tensor([prompt + answer]), hidden=True)[0]
        for k, token in enumerate(answer):
            column = len(prompt) + k
            found = logp[column - 1]
            torch.testing.assert_close(logprobs[i, column], found[token])
            torch.testing.assert_close(entropy[i, column], -(found.exp() * found).sum())
            torch.testing.assert_close(
                values[i, column], net.value(states[column - 1])[0]
            )


def test_a_value_does_not_know_the_token_that_comes_next():
    """Poison: changing an action changes nothing up to and at its own value."""
    net = actor()
    batch = lay_out(PROMPTS, ANSWERS)
    _, before, _ = read(net, batch)
    column = len(PROMPTS[2]) + 3
    batch["ids"][2, column] = 33
    _, after, _ = read(net, batch)
    torch.testing.assert_close(before[2, : column + 1], after[2, : column + 1])
    assert (before[2, column + 1] - after[2, column + 1]).abs() > 1e-3


def test_outside_the_actions_all_is_0():
    batch = lay_out(PROMPTS, ANSWERS)
    for x in read(actor(), batch):
        assert (x[~batch["mask"]] == 0).all() and (x[batch["mask"]] != 0).all()


def test_what_stands_in_the_padding_changes_no_bit_of_values_or_gradients():
    def run(token):
        net = actor()
        batch = lay_out(PROMPTS, ANSWERS)
        batch["ids"][batch["doc_ids"] < 0] = token
        logprobs, values, _ = read(net, batch)
        (logprobs.sum() + values.square().sum()).backward()
        return [logprobs, values, *(p.grad for p in net.parameters())]

    for clean, dirty in zip(run(0), run(37), strict=True):
        assert torch.equal(clean, dirty)


def test_the_end_of_an_answer_is_an_action_that_is_learnt():
    batch = lay_out(PROMPTS, ANSWERS)
    ends = batch["mask"] & (batch["ids"] == EOS)
    assert ends.sum() == 3
    net = actor()
    logprobs, _, _ = read(net, batch)
    logprobs[ends].sum().backward()
    assert net.policy.output.weight.grad[EOS].abs().sum() > 0


def test_the_value_head_teaches_the_trunk_and_nobody_teaches_by_entropy():
    net = actor()
    _, values, entropy = read(net, lay_out(PROMPTS, ANSWERS))
    values.sum().backward()
    assert net.policy.layers[0].attention.wq.weight.grad.abs().sum() > 0
    assert not entropy.requires_grad


def test_the_samplers_log_probs_are_those_of_policy_and_reference():
    """What was drawn is what is scored: T = 1, no nucleus, the same positions."""
    net, reference = actor(), policy(seed=3)
    drawn = generate(net.policy, PROMPTS, max_new_tokens=8, eos_id=EOS, seeds=5)
    answers = drawn.lists()
    assert len({len(a) for a in answers}) > 1
    batch = lay_out(PROMPTS, answers)
    for found in (read(net, batch)[0], read_logprobs(net.policy, batch)):
        for i, a in enumerate(answers):
            torch.testing.assert_close(
                found[i][batch["mask"][i]], drawn.logprobs[i, : len(a)]
            )
    other = read_logprobs(reference, batch)
    assert not torch.allclose(other, read_logprobs(net.policy, batch), atol=0.1)
    torch.testing.assert_close(other, read(ActorCritic(reference), batch)[0])


def read_logprobs(model, batch):
    return answer_logprobs(model, batch["ids"], batch["doc_ids"], batch["mask"])
