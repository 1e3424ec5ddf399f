"""Work: every formula against torch's own counter, or against numbers by hand."""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from cria.cache import KVCache
from cria.config import ModelConfig, load
from cria.model import CHUNK, Llama
from cria.scale import compute, machines, paper

GROUPED = ModelConfig(64, 3, 8, 2, 500, 16, max_seq_len=512)
SHAPES = [GROUPED, replace(GROUPED, dim=96, n_heads=4, n_kv_heads=4, n_layers=2)]


def counted(function):
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("T", [5, CHUNK, 2 * CHUNK + 44])
def test_flops_are_those_that_torch_counts(shape, T):
    network, ids = Llama(shape, seed=0), torch.arange(T)[None]
    forward = compute.forward_flops(shape, T, chunk=CHUNK)
    assert counted(lambda: network(ids)) == forward
    learning = compute.train_flops(shape, T, chunk=CHUNK)
    assert counted(lambda: network(ids).sum().backward()) == learning == 3 * forward
    headless = compute.forward_flops(shape, T, output=False, chunk=CHUNK)
    assert counted(lambda: network(ids, hidden=True)) == headless


def test_the_pairs_that_matter_are_fewer_but_not_by_much():
    exact, as_run = (compute.forward_flops(GROUPED, 512, chunk=c) for c in (1, CHUNK))
    assert 0.8 * as_run < exact < as_run


def test_recomputed_flops_are_those_that_checkpointing_adds():
    network, ids = Llama(GROUPED, seed=0), torch.arange(150)[None]
    plain = counted(lambda: network(ids).sum().backward())
    for layer in network.layers:
        forward = layer.forward
        layer.forward = lambda *a, f=forward: checkpoint(f, *a, use_reentrant=True)
    more = counted(lambda: network(ids).sum().backward()) - plain
    assert more == compute.recomputed_flops(GROUPED, 150, chunk=CHUNK)


def test_writing_with_a_cache_costs_what_torch_counts():
    network, prompt, answer, K = Llama(GROUPED, seed=0), 6, 9, 4

    def write():
        cache = KVCache(GROUPED, torch.zeros(1, dtype=torch.long), prompt + answer)
        network(torch.arange(prompt)[None], cache=cache)
        cache.select(torch.zeros(K, dtype=torch.long))  # K answers to one prompt
        for _ in range(answer):
            network(torch.ones(K, 1, dtype=torch.long), cache=cache)

    with torch.inference_mode():
        found = counted(write)
    # The prompt is one chunk here: its keys are all multiplied, not half of them.
    spare = 4 * 3 * 64 * (prompt * prompt - prompt * (prompt + 1) // 2)
    assert found == compute.write_flops(GROUPED, prompt, answer, K) + spare


@pytest.mark.parametrize("name", list(paper.TABLE_2))
def test_training_is_about_six_flops_a_weight_and_token(name):
    model = next(
        load(f"llama2-{size}").model
        for size in ("7b", "13b", "34b", "70b")
        if load(f"llama2-{size}").model.n_params == name
    )
    a_token = compute.train_flops(model, 4096) / 4096
    assert 1 < a_token / (6 * model.n_params) < 1.07  # attention is the rest


def test_matrix_weights_are_all_but_norms_and_the_look_up():
    network = Llama(GROUPED)
    weights = {name: p.numel() for name, p in network.named_parameters() if p.ndim > 1}
    del weights["tok_embeddings.weight"]
    assert compute.matrix_weights(GROUPED) == sum(weights.values())
    del weights["output.weight"]
    assert compute.matrix_weights(GROUPED, output=False) == sum(weights.values())


def test_traffic_of_writing_added_up_token_by_token():
    weights, cache, prompt, answer, at_once = 10_000.0, 3.0, 10, 400, 8
    one_by_one = sum(weights / at_once + cache * (prompt + t) for t in range(answer))
    found = compute.write_bytes(weights, cache, prompt, answer, at_once)
    assert found == pytest.approx(one_by_one, rel=0.01)
    alone = compute.write_bytes(weights, cache, prompt, answer, 1)
    assert alone > 4 * found  # this is why answers are written in batches


def test_sampling_waits_for_memory_or_for_arithmetic():
    peak, bandwidth = 100.0, 10.0
    arithmetic = compute.writing_hours(360_000, 0, peak, bandwidth, mfu=0.5)
    assert arithmetic == pytest.approx(2)  # 360,000 ÷ (100 · 0.5) = 7,200 s
    traffic = 3600 * 5 * bandwidth * compute.MBU  # five hours
    assert compute.writing_hours(360_000, traffic, peak, bandwidth, 0.5) == (
        pytest.approx(5)
    )


def test_hours_and_mfu_are_each_other_s_way_back():
    hours = compute.training_hours(1e20, 312e12, 0.37)
    assert compute.implied_mfu(1e20, hours, 312e12) == pytest.approx(0.37)
    # By hand: 6 · 6.74e9 · 2e12 FLOPs in 184,320 A100 hours are 39 % of the peak.
    by_hand = 6 * 6.74e9 * 2e12 / (184_320 * 3600 * 312e12)
    found = compute.implied_mfu(6 * 6.74e9 * 2e12, 184_320, 312e12)
    assert found == pytest.approx(by_hand) == pytest.approx(0.39, abs=0.005)


@pytest.mark.parametrize(("rows", "gpus"), [(64, 64), (64, 48), (64, 2000), (7, 3)])
def test_rows_dealt_out_like_cards(rows, gpus):
    hands = [0] * gpus
    for row in range(rows):
        hands[row % gpus] += 1
    longest = max(hands)  # the others wait for this one
    assert compute.busy_gpus(rows, gpus) == sum(hands) / longest <= min(rows, gpus)


def test_table_2_adds_up_and_its_carbon_follows_from_its_hours():
    rows = paper.TABLE_2.values()
    assert sum(row.gpu_hours for row in rows) == 3_311_616
    assert sum(row.tonnes for row in rows) == pytest.approx(539.00, abs=0.025)
    for row in rows:
        mwh = compute.energy_mwh(row.gpu_hours, row.watts)
        assert compute.tonnes_co2eq(mwh) == pytest.approx(row.tonnes, abs=0.01)


def test_energy_by_hand():
    assert compute.energy_mwh(1_720_320, 400) == pytest.approx(688.128)


def test_gpus_are_named_by_their_memory_and_found_by_nearly_their_name():
    for name, gpu in machines.GPUS.items():
        assert name == gpu.name and gpu.source
        assert name.endswith(f"-{gpu.memory_bytes / 1e9:.0f}gb")
        assert 100e12 < gpu.peak_flops < 3e15  # dense: no sheet's sparse number
        assert 0.5e12 < gpu.bandwidth < 10e12 and 200 < gpu.watts < 1500
        assert gpu.usable_bytes < gpu.memory_bytes
    assert machines.find("H100_80GB") is machines.GPUS["h100-80gb"]
    with pytest.raises(ValueError, match="did you mean h200-141gb"):
        machines.find("h200-140gb")
