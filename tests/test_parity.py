"""data/parity/: still what transformers says, small, and able to catch a mistake."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from cria import checkpoints
from cria.checkpoint_hf import to_halves, to_pairs

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "data" / "parity"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def made_again(tmp_path_factory):
    pytest.importorskip("transformers")
    path = ROOT / "tools" / "make_parity.py"
    spec = importlib.util.spec_from_file_location("make_parity", path)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    folder = tmp_path_factory.mktemp("parity")
    tool.write(folder)
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "numbers.safetensors"])
def test_transformers_still_says_the_same(made_again, name):
    ours, theirs = load_file(FOLDER / name), load_file(made_again / name)
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert_close(tensor, theirs[key], msg=lambda m, key=key: f"{key}: {m}", **CLOSE)


def test_the_shape_is_the_same_and_the_folder_is_small(made_again):
    ours, theirs = (
        json.loads((folder / "config.json").read_text("utf-8"))
        for folder in (FOLDER, made_again)
    )
    for shape in (ours, theirs):
        shape.pop("transformers_version")
    assert ours == theirs
    assert {p.name for p in FOLDER.iterdir()} == {p.name for p in made_again.iterdir()}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 200 * 1024


def logits(model):
    with torch.no_grad():
        return model(load_file(FOLDER / "numbers.safetensors")["ids"])


def off(model):
    """The largest difference from transformers' logits."""
    said = load_file(FOLDER / "numbers.safetensors")["logits"]
    return float((logits(model) - said).abs().max())


def test_the_library_gives_the_same_logits():
    assert off(checkpoints.load(FOLDER)) < 1e-4


def no_permutation(model):
    c = model.config
    for layer in model.layers:
        wq = layer.attention.wq.weight
        wq.data = to_halves(wq.data, c.n_heads)


def keys_permuted_by_other_heads(model):
    """wk brought to Meta's order with another number of heads than its own."""
    c = model.config
    for layer in model.layers:
        wk = layer.attention.wk.weight
        wk.data = to_pairs(to_halves(wk.data, c.n_kv_heads), c.n_kv_heads * 2)


def heads_shared_in_turn(model):
    """Query head h reads key head h % K, instead of h // (H/K)."""
    H, K = model.config.n_heads, model.config.n_kv_heads
    order = torch.arange(H).view(K, H // K).T.flatten()
    for layer in model.layers:
        a = layer.attention
        a.wq.weight.data = a.wq.weight.data.unflatten(0, (H, -1))[order].flatten(0, 1)
        a.wo.weight.data = a.wo.weight.data.unflatten(1, (H, -1))[:, order].flatten(1)


def gate_and_content_swapped(model):
    for layer in model.layers:
        f = layer.feed_forward
        f.w1.weight.data, f.w3.weight.data = f.w3.weight.data, f.w1.weight.data


def other_epsilon(model):
    for layer in model.layers:
        layer.attention_norm.eps = 1e-6


def norms_swapped(model):
    for layer in model.layers:
        layer.attention_norm, layer.ffn_norm = layer.ffn_norm, layer.attention_norm


@pytest.mark.parametrize(
    "mistake",
    [
        no_permutation,
        keys_permuted_by_other_heads,
        heads_shared_in_turn,
        gate_and_content_swapped,
        other_epsilon,
        norms_swapped,
    ],
)
def test_the_numbers_catch_a_mistake(mistake):
    model = checkpoints.load(FOLDER)
    mistake(model)
    assert off(model) > 1e-3
