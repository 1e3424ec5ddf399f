"""The model against transformers' Llama, and the properties of every mask and cache."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from cria.cache import KVCache
from cria.checkpoint_hf import heads_of, hf_name, to_halves
from cria.config import ModelConfig
from cria.model import (
    CHUNK,
    Attention,
    Llama,
    RMSNorm,
    apply_rope,
    document_positions,
    rope_table,
)

# 8 query heads on 2 key heads: n_heads / n_kv_heads = 4 is not n_kv_heads, so that a
# permutation which mixes the two up cannot pass.
GROUPED = ModelConfig(
    dim=64,
    n_layers=3,
    n_heads=8,
    n_kv_heads=2,
    vocab_size=61,
    multiple_of=8,
    ffn_dim_multiplier=1.3,
    max_seq_len=400,
)
PLAIN = ModelConfig(
    dim=48, n_layers=2, n_heads=4, n_kv_heads=4, vocab_size=61, multiple_of=16
)


def lively(config, seed=0):
    """A model whose attention is far from uniform and whose logits are of order 1.

    With the small weights of a fresh model many mistakes would drown in rounding.
    """
    model = Llama(config, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.normal_(0, 1.5 / math.sqrt(p.shape[1]), generator=generator)
            else:
                p.uniform_(0.5, 1.5, generator=generator)
    return model


def tokens(rows, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 61, (rows, length), generator=generator)


@pytest.fixture(scope="module")
def model():
    return lively(GROUPED)


# Against transformers


def transformers_twin(model, permute=to_halves):
    c = model.config
    twin = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.dim,
            intermediate_size=c.ffn_hidden,
            num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads,
            num_key_value_heads=c.n_kv_heads,
            rms_norm_eps=c.norm_eps,
            rope_theta=c.rope_theta,
            max_position_embeddings=c.max_seq_len,
            tie_word_embeddings=False,
        )
    )
    weights = {}
    for name, weight in model.state_dict().items():
        heads = heads_of(name, c)
        weights[hf_name(name)] = permute(weight, heads) if heads else weight
    twin.load_state_dict(weights, strict=True)
    return twin.eval()


@torch.no_grad()
@pytest.mark.parametrize("config", [GROUPED, PLAIN], ids=["grouped", "plain"])
def test_the_logits_are_those_of_transformers(config):
    model = lively(config)
    ids = tokens(2, 300)
    ours, theirs = model(ids), transformers_twin(model)(ids).logits
    assert ours.std() > 0.3, "logits this small would agree by accident"
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_two_rope_layouts_are_not_the_same(model):
    """Without the permutation of wq and wk the logits differ: so it is needed."""
    ids = tokens(1, 40)
    unpermuted = transformers_twin(model, permute=lambda weight, heads: weight)
    assert (model(ids) - unpermuted(ids).logits).abs().max() > 0.1


# RMSNorm


def test_rmsnorm_leaves_a_mean_square_of_one():
    x = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(0)) * 30
    y = RMSNorm(64, 1e-5)(x)
    torch.testing.assert_close(y.pow(2).mean(-1), torch.ones(5, 7))
    # No mean is taken away (unlike LayerNorm): the direction stays.
    torch.testing.assert_close(torch.cosine_similarity(x, y, -1), torch.ones(5, 7))


def test_rmsnorm_counts_in_float32():
    """Squares of 30000 overflow in float16, and a bfloat16 mean is coarse."""
    for dtype, size in ((torch.bfloat16, 0.25), (torch.float16, 3e4)):
        x = torch.full((1, 4096), size, dtype=dtype)
        y = RMSNorm(4096, 1e-5)(x)
        assert y.dtype is dtype
        torch.testing.assert_close(y.float(), torch.ones(1, 4096), atol=1e-2, rtol=0)


# RoPE


def turned(vector, position, theta=10000.0):
    """`apply_rope` on one head at one position."""
    table = rope_table(len(vector), 512, theta)
    return apply_rope(vector.view(1, 1, 1, -1), table[None, [position]]).flatten()


def test_rope_sees_distances_only():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 32, generator=generator)
    products = [turned(q, p + 7) @ turned(k, p) for p in (0, 1, 50, 400)]
    for product in products[1:]:
        torch.testing.assert_close(product, products[0], atol=1e-3, rtol=0)
    assert abs(turned(q, 8) @ turned(k, 0) - products[0]) > 0.01


def test_rope_turns_neighbouring_pairs_by_the_papers_angles():
    x = torch.randn(8, generator=torch.Generator().manual_seed(0))
    expected = []
    for j in range(4):  # RoFormer eq. 15: θ_j = 10000^(−2j/E), here at position 3
        angle = 3 * 10000 ** (-2 * j / 8)
        a, b = x[2 * j].item(), x[2 * j + 1].item()
        expected += [
            a * math.cos(angle) - b * math.sin(angle),
            a * math.sin(angle) + b * math.cos(angle),
        ]
    torch.testing.assert_close(turned(x, 3), torch.tensor(expected))


def test_positions_restart_with_every_run_of_ids():
    docs = torch.tensor([[-1, -1, 0, 0, 0, 4, 4], [2, 0, 0, 2, 2, -1, -1]])
    assert document_positions(docs).tolist() == [
        [0, 1, 0, 1, 2, 0, 1],
        [0, 0, 1, 0, 1, 0, 1],
    ]


# Masks


@torch.no_grad()
@pytest.mark.parametrize("T", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3])
def test_a_token_cannot_see_what_comes_later(model, T):
    """On both sides of the chunks: changing token t changes t and after, only."""
    ids = tokens(1, T)
    before = model(ids)
    for t in {0, T // 2, T - 1}:
        changed = ids.clone()
        changed[0, t] = (changed[0, t] + 1) % 61
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        moved = (after[0, t:] - before[0, t:]).abs().amax(-1)
        assert (moved > 0).all(), "every later token sees the change"


@torch.no_grad()
def test_chunks_leave_no_seam(model):
    """The logits of the first T tokens do not depend on how many follow."""
    ids = tokens(2, 2 * CHUNK + 40)
    whole = model(ids)
    for T in (CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK):
        torch.testing.assert_close(model(ids[:, :T]), whole[:, :T], atol=1e-4, rtol=0)


@torch.no_grad()
def test_documents_do_not_see_each_other(model):
    """Two documents across a chunk boundary: changing one leaves the other as it is,
    bit for bit."""
    ids = tokens(1, 200)
    docs = (torch.arange(200) >= 90).long()[None]
    before = model(ids, docs)
    for inside in (slice(0, 90), slice(90, 200)):
        changed = ids.clone()
        changed[:, inside] = (changed[:, inside] + 1) % 61
        after = model(changed, docs)
        outside = torch.ones(200, dtype=torch.bool)
        outside[inside] = False
        assert torch.equal(after[:, outside], before[:, outside])
        assert not torch.equal(after[:, ~outside], before[:, ~outside])


@torch.no_grad()
def test_packed_documents_are_as_if_alone(model):
    lengths = [5, 1, 130, 40]
    ids = tokens(1, sum(lengths))
    docs = torch.arange(4).repeat_interleave(torch.tensor(lengths))[None]
    packed = model(ids, docs).split(lengths, 1)
    for part, alone in zip(packed, ids.split(lengths, 1), strict=True):
        torch.testing.assert_close(part, model(alone), atol=1e-4, rtol=0)


@torch.no_grad()
def test_padding_left_right_or_none(model):
    rows = [tokens(1, n, seed=n)[0] for n in (3, 9, 6, 150)]
    width = 150

    def padded(side, filler):
        ids = torch.full((len(rows), width), filler)
        docs = torch.full((len(rows), width), -1)
        for r, row in enumerate(rows):
            where = slice(0, len(row)) if side == "right" else slice(-len(row), None)
            ids[r, where], docs[r, where] = row, 0
        out = model(ids, docs)
        assert out.isfinite().all(), "not even a pad may be NaN: it spoils gradients"
        return [out[r][docs[r] == 0] for r in range(len(rows))]

    alone = [model(row[None])[0] for row in rows]
    for side in ("left", "right"):
        for expected, got in zip(alone, padded(side, 0), strict=True):
            torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)
        for zero, other in zip(padded(side, 0), padded(side, 17), strict=True):
            assert torch.equal(zero, other), "what stands in the padding is not seen"


def test_padding_has_no_gradient(model):
    """Poison: the loss of real tokens cannot move what only pads embed."""
    ids = torch.tensor([[60, 60, 5, 6, 7], [8, 9, 5, 60, 60]])
    docs = torch.tensor([[-1, -1, 0, 0, 0], [0, 0, 0, -1, -1]])
    model.zero_grad()
    model(ids, docs)[docs == 0].sum().backward()
    gradient = model.tok_embeddings.weight.grad
    assert (gradient[60] == 0).all() and (gradient[[5, 6, 8]] != 0).any(1).all()
    model.zero_grad()


# Branches: one prompt, several answers


def branching(lengths, seed=0):
    """A row of a prompt and answers of these lengths: ids and branches, (1, T)."""
    branches = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    return tokens(1, sum(lengths), seed), branches[None]


@torch.no_grad()
@pytest.mark.parametrize("lengths", [[5, 3, 4], [1, 1, 1], [CHUNK - 8, 30, 90, 60]])
def test_an_answer_among_others_is_as_if_alone(model, lengths):
    """On both sides of the chunks of queries: same positions, same sight."""
    ids, branches = branching(lengths)
    together = model(ids, branches=branches).split(lengths, 1)
    prompt, *answers = ids.split(lengths, 1)
    torch.testing.assert_close(together[0], model(prompt), atol=1e-4, rtol=0)
    for answer, got in zip(answers, together[1:], strict=True):
        alone = model(torch.cat([prompt, answer], 1))[:, prompt.shape[1] :]
        torch.testing.assert_close(got, alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_answers_do_not_see_each_other(model):
    """Changing one leaves the others and the prompt as they are, bit for bit."""
    lengths = [90, 60, 70]
    ids, branches = branching(lengths)
    before = model(ids, branches=branches)
    for k in (1, 2):
        changed = ids.where(branches != k, (ids + 1) % 61)
        after = model(changed, branches=branches)
        assert torch.equal(after[branches != k], before[branches != k])
        assert not torch.equal(after[branches == k], before[branches == k])
    after = model(ids.where(branches > 0, (ids + 1) % 61), branches=branches)
    assert ((after - before).abs().amax(-1) > 0).all(), "all see the prompt"


@torch.no_grad()
def test_padding_behind_branches_is_not_seen(model):
    ids, branches = branching([7, 4, 6])
    alone = model(ids, branches=branches)
    wide = torch.nn.functional.pad(branches, (0, 9), value=-1)
    for filler in (0, 17):
        padded = torch.nn.functional.pad(ids, (0, 9), value=filler)
        out = model(padded, branches=wide)
        assert out.isfinite().all(), "not even a pad may be NaN: it spoils gradients"
        torch.testing.assert_close(out[:, :17], alone, atol=1e-4, rtol=0)


# The cache


@torch.no_grad()
@pytest.mark.parametrize(
    "steps", [[10] * 3, [1] * 30, [20, 1, 1, 8], [1, 29], [2, CHUNK + 1, 1, 30]]
)
def test_reading_with_a_cache_is_reading_at_once(model, steps):
    ids = tokens(3, sum(steps))
    cache = KVCache(GROUPED, torch.zeros(3, dtype=torch.long), sum(steps))
    parts = [model(part, cache=cache) for part in ids.split(steps, 1)]
    assert cache.length == sum(steps)
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-4, rtol=0)


def test_a_cache_works_with_gradients_on_too(model):
    ids = tokens(2, 6)
    cache = KVCache(GROUPED, torch.zeros(2, dtype=torch.long), 6)
    parts = [model(part, cache=cache) for part in ids.split([4, 2], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), model(ids), atol=1e-4, rtol=0)
    assert not cache.kv.requires_grad


def test_documents_branches_and_a_cache_exclude_each_other(model):
    cache = KVCache(GROUPED, torch.zeros(1, dtype=torch.long), 4)
    who = torch.tensor([[0, 0, 1, 1]])
    for given in (
        {"doc_ids": who, "cache": cache},
        {"branches": who, "cache": cache},
        {"doc_ids": who, "branches": who},
    ):
        with pytest.raises(ValueError, match="only one of them"):
            model(tokens(1, 4), **given)


@torch.no_grad()
@pytest.mark.parametrize("steps", [[12], [8, 1, 3], [1] * 12])
def test_a_cache_knows_the_padding_of_its_rows(model, steps):
    """Even where the pads are read in pieces."""
    ids, padding = tokens(3, 12), torch.tensor([0, 5, 9])
    cache = KVCache(GROUPED, padding, 12)
    out = torch.cat([model(part, cache=cache) for part in ids.split(steps, 1)], 1)
    for r, pad in enumerate(padding):
        alone = model(ids[r : r + 1, pad:])
        torch.testing.assert_close(out[r : r + 1, pad:], alone, atol=1e-4, rtol=0)


@torch.no_grad()
def test_rows_of_a_cache_can_be_dropped_and_repeated(model):
    ids, padding, rows = tokens(3, 8), torch.tensor([0, 2, 4]), torch.tensor([2, 0, 2])
    cache = KVCache(GROUPED, padding, 12)
    model(ids, cache=cache)
    cache.select(rows)
    more = tokens(3, 4, seed=1)
    out = model(more, cache=cache)
    for r, row in enumerate(rows):
        whole = torch.cat([ids[row, padding[row] :], more[r]])[None]
        torch.testing.assert_close(out[r], model(whole)[0, -4:], atol=1e-4, rtol=0)


# Weights


def test_the_names_are_metas():
    """Those of `consolidated.00.pth`, and no buffers beside them."""
    names = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    for i in range(GROUPED.n_layers):
        for module in (
            *(f"attention.{w}" for w in ("wq", "wk", "wv", "wo")),
            *(f"feed_forward.{w}" for w in ("w1", "w2", "w3")),
            "attention_norm",
            "ffn_norm",
        ):
            names.add(f"layers.{i}.{module}.weight")
    model = Llama(GROUPED)
    assert set(model.state_dict()) == names
    assert not list(model.buffers())
    # Shapes as published: GQA makes wk and wv smaller.
    layer = model.layers[0]
    assert layer.attention.wk.weight.shape == (16, 64)
    assert layer.feed_forward.w2.weight.shape == (64, GROUPED.ffn_hidden)


@pytest.mark.parametrize("config", [GROUPED, PLAIN], ids=["grouped", "plain"])
def test_the_formula_counts_every_weight(config):
    assert config.n_params == sum(p.numel() for p in Llama(config).parameters())


def test_the_seed_decides_the_weights_and_nothing_else_does():
    torch.manual_seed(1)
    first = Llama(PLAIN, seed=3).state_dict()
    torch.manual_seed(2)
    second, other = Llama(PLAIN, seed=3), Llama(PLAIN, seed=4)
    assert all(torch.equal(first[n], w) for n, w in second.state_dict().items())
    assert not torch.equal(first["output.weight"], other.output.weight)


def test_a_fresh_model_knows_nothing():
    """Its loss is that of a guess, and no token is preferred by much."""
    logp = Llama(GROUPED, seed=0)(tokens(2, 50)).log_softmax(-1)
    assert -logp.mean().item() == pytest.approx(math.log(61), abs=0.05)


# Types and errors


@torch.no_grad()
def test_bfloat16_is_float32_with_less_precision(model):
    ids, docs = tokens(2, 150), (torch.arange(150) // 60).expand(2, -1)
    exact = model(ids, docs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(ids, docs)
    assert rough.dtype is torch.float32
    error = (rough - exact).abs()
    assert 0 < error.mean() < 0.05 * exact.abs().mean()


@torch.no_grad()
def test_the_hidden_states_are_the_logits_before_the_output_matrix(model):
    ids = tokens(2, 9)
    states = model(ids, hidden=True)
    assert states.shape == (2, 9, 64)
    torch.testing.assert_close(model.output(states), model(ids))


def test_attention_saves_keys_and_values_by_groups():
    """What GQA is for: K/H of the cache of plain attention, and of wk and wv."""
    config = ModelConfig(
        dim=64, n_layers=3, n_heads=8, n_kv_heads=8, vocab_size=61, multiple_of=8
    )
    padding = torch.zeros(2, dtype=torch.long)
    whole, grouped = KVCache(config, padding, 10), KVCache(GROUPED, padding, 10)
    assert whole.kv.numel() == 4 * grouped.kv.numel()
    assert (
        Attention(config).wk.weight.numel() == 4 * Attention(GROUPED).wk.weight.numel()
    )


@pytest.mark.parametrize("past", [0, 300])
def test_too_long_an_input_is_one_clear_sentence(model, past):
    cache = None
    if past:
        cache = KVCache(GROUPED, torch.zeros(1, dtype=torch.long), 500)
        cache.length = past
    with pytest.raises(ValueError, match="401 tokens do not fit max_seq_len=400"):
        model(tokens(1, 401 - past), cache=cache)
    if not past:
        model(tokens(1, 400))  # the last that fits
