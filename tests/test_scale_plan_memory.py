"""Bytes: every formula against torch itself, on the meta device or on tiny networks."""

from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from cria.cache import KVCache
from cria.config import ModelConfig, OptimConfig, load
from cria.model import CHUNK, Llama
from cria.optim import adamw
from cria.reward import RewardModel
from cria.scale import memory
from cria.training import lm_loss

PAPER = {
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-34b": 33_743_970_304,
    "llama2-70b": 68_976_648_192,
}
GROUPED = ModelConfig(64, 3, 8, 2, 500, 16, max_seq_len=512)
SHAPES = [
    GROUPED,
    replace(GROUPED, n_kv_heads=8, n_layers=1),  # no groups
    replace(GROUPED, dim=96, n_heads=4, n_kv_heads=1, multiple_of=64, vocab_size=90),
]


@pytest.mark.parametrize("name", PAPER)
def test_parameters_of_the_full_sizes_are_the_paper_s(name):
    model = load(name).model
    assert memory.count_parameters(model) == PAPER[name] == model.n_params


@pytest.mark.parametrize("shape", SHAPES)
def test_parameters_of_blocks_and_reward_models_are_those_of_the_modules(shape):
    network = Llama(shape, seed=0)

    def count(module):
        return sum(p.numel() for p in module.parameters())

    assert memory.count_parameters(shape) == count(network)
    assert memory.block_parameters(shape) == count(network.layers[0])
    for own in (False, True):
        n = count(RewardModel(network, own_logprob=own))
        assert memory.reward_parameters(shape, own) == n


def test_training_state_is_what_adamw_really_keeps():
    network = Llama(GROUPED, seed=0)
    optimizer = adamw(network, OptimConfig(lr=1e-3))
    network(torch.arange(8)[None]).sum().backward()
    optimizer.step()
    weights = sum(p.nbytes for p in network.parameters())
    gradients = sum(p.grad.nbytes for p in network.parameters())
    moments = sum(
        t.nbytes
        for state in optimizer.state.values()
        for name, t in state.items()
        if name != "step"
    )
    n = GROUPED.n_params
    each = (memory.WEIGHT, memory.GRADIENT, memory.ADAM)
    assert (weights, gradients, moments) == tuple(n * e for e in each)
    assert sum(memory.sharded_bytes(n, e, 8) for e in each) == n * 2  # 16 bytes ÷ 8


def kept(network, ids, loss, blocks_checkpointed=False):
    """Bytes of the storages that autograd keeps, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    found = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage  # held, so that no address returns
        return tensor

    if blocks_checkpointed:
        for layer in network.layers:
            forward = layer.forward
            layer.forward = lambda *a, f=forward: checkpoint(f, *a, use_reentrant=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss(network, ids)
    return sum(storage.nbytes() for storage in found.values())


def language(network, ids):
    return lm_loss(network(ids), ids, torch.ones_like(ids, dtype=torch.bool))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("T", [CHUNK // 2, 3 * CHUNK])
def test_activations_are_what_autograd_keeps(shape, dtype, T):
    """Within 1 %, and 4 kB for what does not grow with the tokens."""
    network = Llama(shape, seed=0).to(dtype)
    ids = torch.arange(T)[None] % shape.vocab_size
    foretold = memory.activation_bytes(shape, T, dtype.itemsize, False)
    assert kept(network, ids, language) == pytest.approx(foretold, rel=0.01, abs=4096)


def test_activations_without_the_output_matrix():
    network, ids = Llama(GROUPED, seed=0), torch.arange(200)[None]
    found = kept(network, ids, lambda n, x: n(x, hidden=True).sum())
    foretold = memory.activation_bytes(GROUPED, 200, 4, False, output=False)
    assert found == pytest.approx(foretold, rel=0.01, abs=4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_checkpointing_keeps_the_inputs_of_blocks(dtype):
    """… and one block at a time is computed again, which the formula adds."""
    network, T, b = Llama(GROUPED, seed=0).to(dtype), 300, dtype.itemsize
    found = kept(network, torch.arange(T)[None], language, blocks_checkpointed=True)
    foretold = memory.activation_bytes(GROUPED, T, b, True)
    foretold -= memory.block_activations(GROUPED, T, b)
    assert found == pytest.approx(foretold, rel=0.01, abs=4096)


def test_checkpointing_pays_where_there_are_many_layers():
    model = load("llama2-70b").model
    plain, ckpt = (memory.activation_bytes(model, 4096, 2, c) for c in (False, True))
    # By hand: 80 layers · 4096 tokens · 8192 · 2 bytes = 5.37 GB of inputs.
    assert 5.37e9 < ckpt < 9e9 < 200e9 < plain


@pytest.mark.parametrize("chunk", [1, 4, 7])
@pytest.mark.parametrize("T", [1, 4, 11])
def test_pairs_counted_one_by_one(T, chunk):
    pairs = 0
    for query in range(T):
        last = min(T, (query // chunk + 1) * chunk)  # the end of its chunk
        pairs += sum(key < last for key in range(T))
    assert memory.seen_pairs(T, chunk) == pairs


@pytest.mark.parametrize("name", [*PAPER, "course"])
@pytest.mark.parametrize("b", [2, 4])
def test_cache_is_as_big_as_the_real_one(name, b):
    model = load(name).model
    padding = torch.zeros(1, dtype=torch.long, device="meta")
    dtype = {2: torch.bfloat16, 4: torch.float32}[b]
    real = KVCache(model, padding, 4096, dtype).kv
    assert memory.cache_bytes(model, 4096, b) == real.nbytes
    ungrouped = replace(model, n_kv_heads=model.n_heads)
    real = KVCache(ungrouped, padding, 4096, dtype).kv
    assert memory.cache_bytes(model, 4096, b, gqa=False) == real.nbytes


def test_gathered_by_hand():
    """Two blocks in bfloat16, the gradient of one in bfloat16 and in float32, both
    embeddings and their gradients in bfloat16."""
    shape = ModelConfig(64, 1, 8, 2, 500, 16)
    block = sum(p.numel() for p in Llama(shape).layers[0].parameters())
    by_hand = 2 * block * 2 + block * (2 + 4) + 2 * 500 * 64 * (2 + 2)
    assert memory.gathered_bytes(shape, 2) == by_hand
    deeper = replace(shape, n_layers=50)  # the number of layers does not matter
    assert memory.gathered_bytes(deeper, 2) == by_hand


def test_width():
    assert [memory.width(d) for d in ("auto", "bfloat16", "float32")] == [2, 2, 4]
