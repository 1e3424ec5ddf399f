"""Hugging Face's layout of a Llama: other names, and another order of q and k.

Meta rotates neighbouring pairs (0,1), (2,3), …; Hugging Face rotates the halves
(0,E/2), …. So the rows of wq and wk are permuted between the two, head by head, each
with its own number of heads.
"""

from pathlib import Path

import torch
from torch import Tensor

from cria.checkpoint_files import (
    NOT_WEIGHTS,
    Source,
    bad_config,
    open_safetensors,
    read_json,
)
from cria.config import ModelConfig

MODULES = {  # Meta's name of a module: Hugging Face's
    "tok_embeddings": "model.embed_tokens",
    "norm": "model.norm",
    "output": "lm_head",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def hf_name(name: str) -> str:
    """`layers.3.attention.wq.weight` → `model.layers.3.self_attn.q_proj.weight`."""
    module = name.removesuffix(".weight")
    if not module.startswith("layers."):
        return MODULES[module] + ".weight"
    _, layer, module = module.split(".", 2)
    return f"model.layers.{layer}.{MODULES[module]}.weight"


def to_halves(weight: Tensor, heads: int) -> Tensor:
    """The rows of wq or wk (heads·E, D) from Meta's pairs to Hugging Face's halves."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def to_pairs(weight: Tensor, heads: int) -> Tensor:
    """The inverse of `to_halves`."""
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def heads_of(name: str, config: ModelConfig) -> int | None:
    """How many heads share the rows of a rotated matrix; None for any other."""
    if name.endswith("attention.wq.weight"):
        return config.n_heads
    return config.n_kv_heads if name.endswith("attention.wk.weight") else None


def from_hf(folder: Path, found: dict) -> Source:
    """A Hugging Face folder; `found` is its config.json."""
    config = hf_config(folder, found)
    names = {hf_name(name): name for name in _names(config)}
    opened = [open_safetensors(file) for file in _hf_files(folder)]
    where = {n: tensors for tensors in opened for n in tensors.keys()}  # noqa: SIM118
    if found.get("tie_word_embeddings"):
        where["lm_head.weight"] = where.get("model.embed_tokens.weight")
    weights = {n for n in where if not n.endswith(NOT_WEIGHTS)}

    def get(name: str) -> Tensor:
        there = hf_name(name)
        tied = found.get("tie_word_embeddings") and name == "output.weight"
        there = "model.embed_tokens.weight" if tied else there
        weight = where[there].get_tensor(there)
        heads = heads_of(name, config)
        # A wrong shape is reported by the caller, so it is left as it is here.
        return to_pairs(weight, heads) if heads and _splits(weight, heads) else weight

    # A foreign name must not be mistaken for one of Meta's.
    return config, {names.get(n, f"{n} (unknown)") for n in weights}, get


def hf_config(folder: Path, found: dict) -> ModelConfig:
    """The shape in Hugging Face's words; ValueError for what Llama 2 does not have."""
    rope = {**(found.get("rope_scaling") or {}), **(found.get("rope_parameters") or {})}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    dim, heads = found.get("hidden_size"), found.get("num_attention_heads")
    problems = {
        f"model_type {found.get('model_type')!r}": found.get("model_type") != "llama",
        f"RoPE scaling {scaling!r}": scaling != "default",
        "biases": found.get("attention_bias") or found.get("mlp_bias"),
        f"activation {found.get('hidden_act')!r}": (
            found.get("hidden_act", "silu") != "silu"
        ),
        "heads of their own width": (
            dim and heads and (found.get("head_dim") or dim // heads) != dim // heads
        ),
        "rotation of a part of each head": (
            rope.get("partial_rotary_factor", found.get("partial_rotary_factor", 1))
            != 1
        ),
        "quantised weights": "quantization_config" in found,
    }
    for what, there in problems.items():
        if there:
            raise ValueError(
                f"{folder} holds a model with {what}, which is not Llama 2; Cria "
                "loads plain Llama 2 models only."
            )
    try:
        multiple_of, mult = _ffn_rule(dim, found["intermediate_size"])
        return ModelConfig(
            dim=dim,
            n_layers=found["num_hidden_layers"],
            n_heads=heads,
            n_kv_heads=found.get("num_key_value_heads") or heads,
            vocab_size=found["vocab_size"],
            multiple_of=multiple_of,
            ffn_dim_multiplier=mult,
            norm_eps=found.get("rms_norm_eps", 1e-6),  # Hugging Face's default
            rope_theta=float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
            max_seq_len=found.get("max_position_embeddings", 2048),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as err:
        raise ValueError(bad_config(folder / "config.json", err)) from err


def hf_config_of(config: ModelConfig, dtype: torch.dtype, special: dict) -> dict:
    """The contents of config.json; `special` holds the ids of BOS, EOS and pad."""
    c = config
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": c.dim,
        "intermediate_size": c.ffn_hidden,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "vocab_size": c.vocab_size,
        "max_position_embeddings": c.max_seq_len,
        "rms_norm_eps": c.norm_eps,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **special,
    }


def _names(config: ModelConfig) -> list[str]:
    """Meta's names of all the weights of a model of this shape."""
    layer = [m for m in MODULES if "." in m or m in ("attention_norm", "ffn_norm")]
    names = [f"layers.{i}.{m}" for i in range(config.n_layers) for m in layer]
    return [n + ".weight" for n in ["tok_embeddings", *names, "norm", "output"]]


def _hf_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        if not (folder / "model.safetensors").is_file() and list(folder.glob("*.bin")):
            raise ValueError(
                f"{folder} holds its weights as pickles (*.bin), which can run any "
                "code when opened; save them as safetensors first."
            )
        return [folder / "model.safetensors"]
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(
        isinstance(f, str) and Path(f).name == f for f in files.values()
    ):
        raise ValueError(f"{index} is damaged: it should name the file of each weight.")
    return [folder / file for file in sorted(set(files.values()))]


def _ffn_rule(dim: int, hidden: int) -> tuple[int, float | None]:
    """(multiple_of, ffn_dim_multiplier) that give this feed-forward width."""
    plain = int(2 * (4 * dim) / 3)
    for multiple_of, mult in ((256, None), (4096, 1.3)):  # those of Llama 2
        if multiple_of * -(-int((mult or 1) * plain) // multiple_of) == hidden:
            return multiple_of, mult
    # Any other width is one multiple of itself, shrunk first where it must be.
    return hidden, None if plain <= hidden else hidden / plain


def _splits(weight: Tensor, heads: int) -> bool:
    return weight.dim() == 2 and len(weight) % (2 * heads) == 0
