"""Write data/parity/: what transformers' Llama says, so that we can be held to it.

    .venv/bin/python tools/make_parity.py

A Llama too small to mean anything, made, filled with random weights and run by Hugging
Face's transformers alone; nothing of Cria takes part. The learner's environment has
no transformers: notebook 02 reads these numbers instead, and tests/test_parity.py
makes them again and compares.
"""

import json
import os
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

FOLDER = Path(__file__).resolve().parent.parent / "data" / "parity"
SEED = 2307

# 8 query heads share 2 key/value heads: 8/2 is not 2, so that no count can stand
# for another. The feed-forward width is Meta's rule for multiple_of 16.
SHAPE = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=8,
    num_key_value_heads=2,
    max_position_embeddings=64,
    rms_norm_eps=1e-5,
    rope_theta=10000.0,
    tie_word_embeddings=False,
    attn_implementation="eager",
)
ROWS, LENGTH = 2, 12


def network() -> LlamaForCausalLM:
    """The model, every weight from one generator, large enough to matter."""
    model = LlamaForCausalLM(SHAPE).eval()
    generator = torch.Generator().manual_seed(SEED)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if p.dim() == 1:  # a norm: weights that differ from one another
            p.data = 1 + 0.3 * noise
        elif "embed" in name:  # small, so that the norms' epsilon shows
            p.data = 0.02 * noise
        else:
            p.data = noise * p.shape[1] ** -0.5
    return model


@torch.no_grad()
def numbers(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    """What goes in, and what comes out of each part of the first layer."""
    generator = torch.Generator().manual_seed(SEED + 1)
    ids = torch.randint(0, SHAPE.vocab_size, (ROWS, LENGTH), generator=generator)
    found = {"ids": ids}

    def keep(name):
        def hook(module, given, out):
            found[name] = (out[0] if isinstance(out, tuple) else out).clone()

        return hook

    first = model.model.layers[0]
    parts = {
        "embedded": model.model.embed_tokens,
        "attention_norm": first.input_layernorm,
        "q": first.self_attn.q_proj,
        "k": first.self_attn.k_proj,
        "attention": first.self_attn,
        "ffn_norm": first.post_attention_layernorm,
        "feed_forward": first.mlp,
        "block": first,
    }
    hooks = [part.register_forward_hook(keep(name)) for name, part in parts.items()]
    found["logits"] = model(ids).logits.clone()
    for hook in hooks:
        hook.remove()
    # The rotated queries and keys, as (B, heads, T, head_dim), pairs in halves.
    positions = torch.arange(LENGTH)[None]
    cos, sin = model.model.rotary_emb(found["q"], positions)
    width = SHAPE.hidden_size // SHAPE.num_attention_heads
    q, k = (found[n].unflatten(-1, (-1, width)).transpose(1, 2) for n in ("q", "k"))
    found["q_turned"], found["k_turned"] = apply_rotary_pos_emb(q, k, cos, sin)
    return {name: tensor.contiguous() for name, tensor in found.items()}


def write(folder: Path) -> None:
    """config.json and model.safetensors as transformers writes them; numbers."""
    model = network()
    said = numbers(model)
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink()  # nothing is generated with it
    save_file(said, folder / "numbers.safetensors")
    provenance = {
        "made_by": "tools/make_parity.py",
        "transformers": transformers.__version__,
        "torch": torch.__version__.partition("+")[0],
        "seed": SEED,
        "what": "numbers.safetensors: ids (B, T) and what transformers' "
        "LlamaForCausalLM gave for them in float32, the parts of layer 0 by Meta's "
        "names; q_turned and k_turned (B, heads, T, head_dim) in its own layout",
    }
    unfinished = folder / ".provenance.json"
    unfinished.write_text(json.dumps(provenance, indent=1) + "\n", "utf-8")
    os.replace(unfinished, folder / "provenance.json")


if __name__ == "__main__":
    write(FOLDER)
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    print(f"{FOLDER.name}: {size / 1024:.0f} KiB")
    sys.exit(0)
