"""The arms of notebook 03 differ in one thing each."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from cria import config, pretrain_comparisons

SMOKE = config.load("smoke")


@pytest.fixture
def jobs(monkeypatch):
    seen = {}

    def run(function, jobs):
        seen.update(jobs)
        return {name: {} for name in jobs}

    monkeypatch.setattr(pretrain_comparisons.side_by_side, "run", run)
    return seen


def test_two_networks_differ_in_the_mix_alone(jobs, tmp_path):
    tokenizer = SimpleNamespace(tokenizer=lambda: SimpleNamespace(path=tmp_path))
    pretrain_comparisons.build_mixes(SMOKE, 2, {"tokenizer": tokenizer}, tmp_path)
    up, plain = jobs["up-sampled"], jobs["plain"]
    assert {key for key in up if up[key] != plain[key]} == {"mix"}
    assert up["mix"]["gossip"] < plain["mix"]["gossip"]
    assert up["seed"] == 2


def test_all_sizes_read_the_same_text_and_the_largest_begin(jobs, tmp_path):
    told = pretrain_comparisons.build_sizes(SMOKE, 2, {}, tmp_path)
    weights = [job["model"].n_params for job in jobs.values()]
    assert weights == sorted(weights, reverse=True)
    large, multi = jobs["large"]["model"], jobs["multi-head"]["model"]
    assert multi == replace(large, n_kv_heads=large.n_heads) != large
    first = jobs["large"]["text"]
    assert all(job["text"] is first for job in jobs.values())
    assert told["text"]["train"] == first.train.size
    assert set(told) == {*SMOKE.scaling.models, "multi-head", "text"}
