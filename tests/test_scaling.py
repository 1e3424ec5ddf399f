"""Sizes compared on real English: the same text for all, and nothing of the test."""

import re
from dataclasses import replace

import numpy as np
import pytest

from cria import claims, config, realtext, scaling, side_by_side


@pytest.fixture(scope="module")
def smoke():
    return config.load("smoke")


@pytest.fixture(scope="module")
def few_chats():
    """Enough for the smoke profile, and quick to encode."""
    chats = realtext.chats(limit=400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realtext, "chats", lambda limit=None: chats[:limit])
        yield


@pytest.fixture(scope="module")
def text(smoke, few_chats):
    return scaling.real_text(smoke, seed=0)


def windows(rows, width):
    flat = rows.reshape(-1)
    return {flat[i : i + width].tobytes() for i in range(len(flat) - width)}


def test_there_are_rows_for_every_step_and_no_more(smoke, text):
    c = smoke.scaling
    assert text.train.shape == (c.steps * c.batch_size, c.seq_len)
    assert text.held_out.shape == (scaling.HELD_OUT_ROWS, c.seq_len)
    assert text.train.max() < min(m.vocab_size for m in c.models.values())
    assert 2 < text.characters_per_token < 5  # English, at two thousand pieces


def test_nothing_held_out_is_ever_read(smoke, text):
    assert not windows(text.train, 32) & windows(text.held_out, 32)


def test_a_seed_reads_other_chats_but_is_tested_on_the_same(smoke, text):
    again, other = (scaling.real_text(smoke, seed) for seed in (0, 1))
    assert np.array_equal(again.train, text.train)
    assert not np.array_equal(other.train, text.train)
    assert np.array_equal(other.held_out, text.held_out)


def test_too_many_steps_for_the_text_is_one_clear_error(smoke, few_chats):
    greedy = replace(smoke, scaling=replace(smoke.scaling, steps=10**6))
    with pytest.raises(ValueError, match="ask for fewer steps"):
        scaling.real_text(greedy, seed=0)


def test_a_run_in_another_process_gives_the_same_numbers(smoke, text):
    """So what the notebook compares does not depend on who ran beside whom."""
    job = {
        "model": smoke.scaling.models["tiny"],
        "config": replace(smoke.scaling, dtype="float32"),
        "text": text,
        "seed": 3,
    }
    here = scaling.run_size(**job)
    there = side_by_side.run(scaling.run_size, {"tiny": job}, progress=False)["tiny"]
    assert there["held_out"] == pytest.approx(here["held_out"], abs=1e-5)
    curves = np.array([here["loss"], there["loss"]])
    assert np.allclose(*curves, atol=1e-5)
    assert here["loss"][-1][0] == text.train.size  # every token once
    assert scaling.run_size(**{**job, "seed": 4})["held_out"] != here["held_out"]


def test_training_on_real_text_helps_on_chats_never_read(smoke, text):
    c = replace(smoke.scaling, optim=replace(smoke.scaling.optim, lr=2e-2))
    model = c.models["small"]
    result = scaling.run_size(model, c, text, seed=0)
    # Six steps: hardly more than which tokens are frequent, but on both sides.
    assert result["held_out"] < np.log(model.vocab_size) - 0.1
    assert result["n_params"] == model.n_params


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4, 8])
def test_the_cache_shrinks_by_the_queries_that_share_a_key_head(n_kv_heads):
    grouped = config.ModelConfig(64, 3, 8, n_kv_heads, 100, 16, max_seq_len=32)
    multi = scaling.multi_head(grouped)
    assert replace(multi, n_kv_heads=n_kv_heads) == grouped  # all else is the same
    ratio = scaling.cache_bytes(multi) / scaling.cache_bytes(grouped)
    assert ratio == multi.n_heads / n_kv_heads
    floats = 2 * 3 * 32 * n_kv_heads * 8  # k and v, layers, positions, heads, width
    assert scaling.cache_bytes(grouped) == 4 * floats


@pytest.mark.parametrize("profile", ["smoke", "course", "deep"])
def test_every_profile_compares_four_sizes_and_groups_the_largest(profile):
    c = config.load(profile)
    models = list(c.scaling.models.values())
    assert len(models) == 4
    assert {m.vocab_size for m in models} == {c.tokenizer.real_vocab_size}
    assert models[-1].n_kv_heads < models[-1].n_heads
    assert scaling.multi_head(models[-1]).n_params < 1.08 * models[-1].n_params


def test_fig_5_is_quoted_as_in_the_ledger_and_falls_with_size():
    quoted = re.findall(r"\d\.\d\d", claims.read()[2].paper)
    assert [float(q) for q in quoted] == list(scaling.FIG_5.values())
    sizes = [config.load(f"llama2-{name}").model.n_params for name in scaling.FIG_5]
    assert sizes == sorted(sizes)
    losses = list(scaling.FIG_5.values())
    assert losses == sorted(losses, reverse=True)
