"""Sampling: right probabilities, honest log-probs, rows that do not feel each other."""

import itertools
import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import cria.sampling
from cria.cache import KVCache
from cria.checkpoint_hf import heads_of, hf_name, to_halves
from cria.config import ModelConfig
from cria.decoding import layer_weights, next_logits
from cria.model import Llama
from cria.sampling import draw, generate, sampling_probs

CONFIG = ModelConfig(
    dim=64,
    n_layers=2,
    n_heads=8,
    n_kv_heads=2,
    vocab_size=23,
    multiple_of=8,
    max_seq_len=80,
)
EOS = 2
PROMPTS = [[1, 5, 6], [1, 7], [1, 8, 9, 10, 11, 4, 3], [1, 12, 13]]


@pytest.fixture(scope="module")
def model():
    """Random, but with opinions: at T = 1 some rows stop early and some do not."""
    model = Llama(CONFIG, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0, 1.3 / p.shape[1] ** 0.5, generator=generator)
    return model


def run(model, prompts=PROMPTS, **options):
    options = {"max_new_tokens": 20, "eos_id": EOS, "seeds": 5} | options
    return generate(model, prompts, **options)


def continuation_logits(model, prompt, new):
    """The logits (len(new), V) that one reading of the whole text gives."""
    with torch.no_grad():
        return model(torch.tensor([prompt + new]))[0, len(prompt) - 1 : -1]


# Log-probs


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.6},
        {"temperature": 1.4, "top_p": 0.8},
        {"top_p": 0.3, "n": 3},
    ],
    ids=str,
)
def test_logprobs_are_those_of_the_distribution_sampled_from(model, options):
    """One reading of the finished text under the same temperature and top-p."""
    samples = run(model, **options)
    temperature, top_p = options.get("temperature", 1.0), options.get("top_p", 1.0)
    n = options.get("n", 1)
    for r, new in enumerate(samples.lists()):
        logits = continuation_logits(model, PROMPTS[r // n], new)
        table = sampling_probs(logits, temperature, top_p).log()
        expected = table.gather(1, torch.tensor(new)[:, None])[:, 0]
        got = samples.logprobs[r][samples.mask[r]]
        assert got.isfinite().all(), "a token outside the nucleus was drawn"
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
    assert (samples.logprobs[~samples.mask] == 0).all()
    assert (samples.ids[~samples.mask] == 0).all()


def test_plain_logprobs_are_the_models(model):
    """At T = 1 without top-p: log softmax, as PPO computes it again."""
    for prompt, new, logprobs in zip(
        PROMPTS, (s := run(model)).lists(), s.logprobs, strict=True
    ):
        table = continuation_logits(model, prompt, new).log_softmax(-1)
        expected = table[range(len(new)), new]
        torch.testing.assert_close(logprobs[: len(new)], expected, atol=1e-4, rtol=0)


def test_bfloat16_sampling_is_close_to_the_float32_model(model):
    samples = run(model, dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert samples.logprobs.dtype is torch.float32
    for prompt, new, logprobs in zip(
        PROMPTS, samples.lists(), samples.logprobs, strict=True
    ):
        table = continuation_logits(model, prompt, new).log_softmax(-1)
        expected = table[range(len(new)), new]
        torch.testing.assert_close(logprobs[: len(new)], expected, atol=0.2, rtol=0)


# Greedy


def test_greedy_takes_the_most_probable_token_of_a_full_reading(model):
    samples = run(model, temperature=0)
    for prompt, new in zip(PROMPTS, samples.lists(), strict=True):
        logits = continuation_logits(model, prompt, new)
        assert new == logits.argmax(-1).tolist()
    assert (samples.logprobs == 0).all(), "a point mass: log 1"
    others = run(model, temperature=0, seeds=99)
    assert torch.equal(samples.ids, others.ids), "greedy needs no luck"


def test_greedy_is_transformers_greedy(model):
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CONFIG.vocab_size,
            hidden_size=CONFIG.dim,
            intermediate_size=CONFIG.ffn_hidden,
            num_hidden_layers=CONFIG.n_layers,
            num_attention_heads=CONFIG.n_heads,
            num_key_value_heads=CONFIG.n_kv_heads,
            rms_norm_eps=CONFIG.norm_eps,
            rope_theta=CONFIG.rope_theta,
            tie_word_embeddings=False,
        )
    )
    weights = {}
    for name, w in model.state_dict().items():
        heads = heads_of(name, CONFIG)
        weights[hf_name(name)] = to_halves(w, heads) if heads else w
    twin.load_state_dict(weights, strict=True)
    ours = run(model, temperature=0).lists()
    for prompt, expected in zip(PROMPTS, ours, strict=True):
        out = twin.eval().generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=EOS,
            pad_token_id=0,
        )
        assert out[0, len(prompt) :].tolist() == expected


# One new token a row


@torch.no_grad()
@pytest.mark.parametrize("n_kv_heads", [1, 2, 8])
def test_decoding_is_the_models_own_forward_pass(n_kv_heads):
    """The short way through one token = `Llama`, for GQA and ragged rows, and with
    rows dropped between two tokens."""
    config = ModelConfig(
        dim=64,
        n_layers=3,
        n_heads=8,
        n_kv_heads=n_kv_heads,
        vocab_size=23,
        multiple_of=8,
    )
    model = Llama(config, seed=0)
    for p in model.parameters():
        p.mul_(6) if p.dim() == 2 else p.uniform_(0.5, 1.5)
    ids, padding = torch.arange(40).view(4, 10) % 23, torch.tensor([0, 3, 8, 1])
    caches = [KVCache(config, padding, 30) for _ in range(2)]
    for cache in caches:
        model(ids, cache=cache)
    layers = layer_weights(model)
    tokens = torch.tensor([3, 4, 5, 6])
    for t in range(8):
        if t == 4:
            keep = torch.tensor([3, 1])
            tokens = tokens[keep]
            for cache in caches:
                cache.select(keep)
        expected = model(tokens[:, None], cache=caches[0])[:, 0]
        got = next_logits(model, layers, tokens, caches[1])
        assert caches[1].length == caches[0].length
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        tokens = (tokens + 5) % 23


# Rows


def test_a_row_depends_on_its_prompt_and_seed_alone(model):
    """Alone, in another order, beside others, or after its neighbours have ended."""
    seeds = list(range(40, 52))
    prompts = (PROMPTS * 3)[: len(seeds)]
    together = run(model, prompts, seeds=seeds)
    lengths = together.mask.sum(1)
    assert lengths.min() < 8 and lengths.max() == 20, "some end early, some never"
    whole = together.lists()
    for r, prompt in enumerate(prompts):
        alone = run(model, [prompt], seeds=[seeds[r]])
        assert alone.lists() == [whole[r]]
        torch.testing.assert_close(
            alone.logprobs[0], together.logprobs[r, : lengths[r]], atol=1e-4, rtol=0
        )
    backwards = run(model, prompts[::-1], seeds=seeds[::-1])
    assert backwards.lists() == whole[::-1]
    assert run(model, prompts, seeds=seeds, batch_rows=3).lists() == whole


def test_the_seed_decides(model):
    first, again, other = run(model), run(model), run(model, seeds=6)
    assert torch.equal(first.ids, again.ids)
    assert not torch.equal(first.ids, other.ids)
    state = torch.get_rng_state()
    run(model)
    assert torch.equal(state, torch.get_rng_state()), "the caller's luck is untouched"
    # Rows of one call do not share their luck.
    same = run(model, [PROMPTS[0]] * 4)
    assert len({tuple(row) for row in same.lists()}) > 1


def test_n_samples_are_n_rows_with_the_same_seeds(model):
    seeds = list(range(12))
    at_once = run(model, n=3, seeds=seeds)
    repeated = [prompt for prompt in PROMPTS for _ in range(3)]
    assert run(model, repeated, seeds=seeds).lists() == at_once.lists()


def test_a_prompt_is_read_once_and_done_rows_leave_the_batch(model, monkeypatch):
    read, decoded = [], []
    forward, step = model.forward, cria.sampling.next_logits
    monkeypatch.setattr(
        model,
        "forward",
        lambda ids, **kw: (read.append(ids.shape), forward(ids, **kw))[1],
    )
    monkeypatch.setattr(
        cria.sampling,
        "next_logits",
        lambda m, layers, tokens, cache: (
            decoded.append(len(tokens)),
            step(m, layers, tokens, cache),
        )[1],
    )
    samples = run(model, [PROMPTS[2]], n=32)
    assert read == [(1, len(PROMPTS[2]))], "one row, however many samples"
    assert decoded[0] == 32 and len(decoded) <= 19
    assert decoded == sorted(decoded, reverse=True)
    needed = [int((samples.mask[:, t]).sum()) for t in range(1, samples.mask.shape[1])]
    assert len(needed) == len(decoded), "it stops when all rows have"
    for computed, rows in zip(decoded, needed, strict=True):
        assert rows <= computed <= rows / 0.75 + 1


# The end of a row


def test_a_row_ends_with_eos_or_with_the_last_token_allowed(model):
    samples = run(model, PROMPTS * 5)
    for row, mask, finished in zip(
        samples.ids, samples.mask, samples.finished, strict=True
    ):
        length = int(mask.sum())
        assert mask[:length].all(), "the mask is a prefix"
        assert EOS not in row[: length - 1]
        assert bool(finished) == (int(row[length - 1]) == EOS)
        assert finished or length == 20
    assert 0 < samples.finished.sum() < len(samples.finished), "both kinds occur"
    assert samples.ids.shape[1] == samples.mask.sum(1).max()


@pytest.mark.parametrize("eos_id", [0, EOS])
def test_eos_at_once_is_a_row_of_one_token(model, eos_id):
    """… also where EOS is the number that fills the padding."""
    ending = Llama(CONFIG, seed=0)
    ending.load_state_dict(model.state_dict())
    with torch.no_grad():
        ending.output.weight.zero_()
        ending.norm.weight.zero_()
    # All logits are 0: greedy takes token 0, and a sample any token.
    if eos_id == 0:
        samples = run(ending, temperature=0, eos_id=0)
        assert samples.ids.tolist() == [[0]] * 4 and samples.mask.all()
        assert samples.finished.all()
    else:
        samples = run(ending, temperature=0)
        assert samples.ids.tolist() == [[0] * 20] * 4 and samples.mask.all()
        assert not samples.finished.any()


# The draw


def frequencies(logits, temperature, top_p, n=40_000):
    probs = sampling_probs(logits.expand(n, -1), temperature, top_p)
    u = torch.rand(n, generator=torch.Generator().manual_seed(0))
    return torch.bincount(draw(probs, u), minlength=logits.numel())


def chi_square(counts, expected):
    return sum((c - e) ** 2 / e for c, e in zip(counts.tolist(), expected, strict=True))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_come_as_often_as_they_should(temperature):
    logits = torch.tensor([0.3, -1.0, 1.2, 0.0, -2.5])
    weights = [math.exp(x / temperature) for x in logits.tolist()]
    expected = [40_000 * w / sum(weights) for w in weights]
    # 4 degrees of freedom: above 13.3 once in a hundred times.
    assert chi_square(frequencies(logits, temperature, 1.0), expected) < 13.3
    # The test is sharp enough to tell a temperature that is 10 % off.
    assert chi_square(frequencies(logits, temperature * 1.1, 1.0), expected) > 40


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    """By enumeration of all sets, for every order of the tokens."""
    probabilities = (0.4, 0.25, 0.2, 0.1, 0.05)
    for order in itertools.permutations(range(5)):
        p = torch.tensor([probabilities[i] for i in order])
        for top_p in (0.05, 0.39, 0.41, 0.64, 0.66, 0.84, 0.9, 0.96, 0.999):
            reaching = [
                kept
                for size in range(1, 6)
                for kept in itertools.combinations(range(5), size)
                if sum(p[list(kept)].tolist()) >= top_p
            ]
            size = min(map(len, reaching))
            smallest = [kept for kept in reaching if len(kept) == size]
            best = max(smallest, key=lambda kept: sum(p[list(kept)].tolist()))
            got = sampling_probs(p.log()[None], 1.0, top_p)[0]
            assert tuple(got.nonzero()[:, 0].tolist()) == best
            kept = list(best)
            torch.testing.assert_close(got[kept], p[kept] / p[kept].sum())


def test_top_p_is_drawn_from_after_the_temperature():
    logits = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    # T = 0.5 squares the probabilities: 16 9 4 1 of 30; two tokens reach 0.8.
    counts = frequencies(logits, 0.5, 0.8)
    assert counts[2:].sum() == 0
    # 1 degree of freedom: above 6.63 once in a hundred times.
    assert chi_square(counts[:2], [40_000 * 16 / 25, 40_000 * 9 / 25]) < 6.63


def test_a_draw_at_the_edge_is_a_possible_token():
    """u = 0 and the largest u below 1 never give a token of probability 0."""
    probs = torch.tensor([[0, 0.4, 0.6, 0]])
    edge = torch.tensor([1.0]).nextafter(torch.tensor([0.0]))
    assert draw(probs, torch.zeros(1)).item() == 1
    assert draw(probs, edge).item() == 2
    # A row whose float sum is not quite 1: the largest u is scaled to it.
    long = torch.full((1, 32_000), 1 / 31_995)
    long[0, -5:] = 0
    assert draw(long, edge).item() == 31_994


# Errors and manners


@pytest.mark.parametrize(
    "change, says",
    [
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[1], []]}, "none may be empty"),
        ({"max_new_tokens": 0}, "max_new_tokens ≥ 1"),
        ({"temperature": -1.0}, "temperature ≥ 0"),
        ({"top_p": 0.0}, "0 < top_p ≤ 1"),
        ({"top_p": 1.5}, "0 < top_p ≤ 1"),
        ({"n": 0}, "n ≥ 1"),
        ({"seeds": [1, 2]}, "got 2 seeds for 4 rows"),
        ({"n": 2, "seeds": [1, 2, 3, 4]}, "got 4 seeds for 8 rows"),
        ({"max_new_tokens": 74}, "81 tokens, more than .* max_seq_len=80"),
    ],
    ids=str,
)
def test_what_cannot_be_sampled_is_one_clear_sentence(model, change, says):
    with pytest.raises(ValueError, match=says):
        run(model, **change)


def test_a_text_may_fill_the_model_to_its_last_position(model):
    samples = run(model, max_new_tokens=73, eos_id=-1)
    assert samples.mask.all() and samples.ids.shape == (4, 73)


def test_the_number_of_threads_is_given_back(model):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(model, [PROMPTS[0]])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
