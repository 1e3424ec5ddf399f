"""Where a model looks, turn by turn (paper §3.3, Fig. 10).

The paper shows the largest attention over the network, tokens binned, in one dialogue
with and without GAtt. Both of our models read the same dialogues, in which every
answer obeys: they differ only in where they look.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import torch
from torch import Tensor

from cria import chat, ghost, world
from cria.ghost_evaluate import TRAINED, held_out_plans
from cria.ghost_stage import read_lists
from cria.model import Llama, apply_rope, rope_table
from cria.provenance import write_json
from cria.tokenizer import Tokenizer
from cria.world import World
from cria.world.instructions import dialogue, text

__all__ = ["attention", "binned", "build", "marked", "on_instruction"]

BIN = 8  # neighbouring tokens shown as one
DIALOGUES = 4  # of each kind of instruction


@torch.inference_mode()
def attention(model: Llama, ids: Sequence[int]) -> Tensor:
    """The attention weights of one dialogue: (layers, H, T, T), a query a row.

    `cria.model` never writes them down whole; here they are worked out beside it.
    """
    c, h = model.config, model.tok_embeddings(torch.tensor([list(ids)]))
    T, H, K, E = h.shape[1], c.n_heads, c.n_kv_heads, c.head_dim
    rotations = rope_table(E, c.max_seq_len, c.rope_theta)[None, :T]
    later = torch.ones(T, T, dtype=torch.bool).triu(1)
    found = []
    for layer in model.layers:
        x, a = layer.attention_norm(h), layer.attention
        q = apply_rope(a.wq(x).view(1, T, H, E), rotations)[0].transpose(0, 1)
        k = apply_rope(a.wk(x).view(1, T, K, E), rotations)[0].transpose(0, 1)
        v = a.wv(x).view(T, K, E).transpose(0, 1)
        k, v = (part.repeat_interleave(H // K, 0) for part in (k, v))  # (H, T, E)
        scores = (q @ k.mT / math.sqrt(E)).masked_fill(later, -math.inf)
        found.append(scores.softmax(-1))
        heads = (found[-1] @ v).transpose(0, 1).reshape(1, T, H * E)
        h = h + a.wo(heads)
        h = h + layer.feed_forward(layer.ffn_norm(h))
    return torch.stack(found)


def marked(
    vocabulary: Tokenizer, messages: chat.Messages, wish: str
) -> tuple[list[int], slice, list[slice]]:
    """The dialogue with its instruction told once, as ids; where the instruction
    stands; and, for every answer, the places that foretell its tokens."""
    told = ghost.once(messages, wish)
    ids, loss_mask = chat.encode_dialog(vocabulary, told)
    begin = len(vocabulary.encode("[INST]", bos=True))
    end = len(vocabulary.encode(f"[INST] {wish}", bos=True))
    answers, start = [], None
    for i, counts in enumerate([*loss_mask, False]):
        if counts and start is None:
            start = i
        if not counts and start is not None:
            answers.append(slice(start - 1, i - 1))
            start = None
    return ids, slice(begin, end), answers


def on_instruction(
    weights: Tensor, instruction: slice, answers: Sequence[slice]
) -> list[float]:
    """For each answer, the largest share of its attention that a head of the network
    gives to the instruction; at each token, and the mean over the answer's tokens."""
    share = weights[..., instruction].sum(-1).amax((0, 1))  # (T,)
    return [float(share[answer].mean()) for answer in answers]


def binned(weights: Tensor, size: int = BIN) -> Tensor:
    """(layers, H, T, T) → the largest weight in the network, ``size`` × ``size`` tokens
    in one: (⌈T/size⌉, ⌈T/size⌉)."""
    largest = weights.amax((0, 1))
    short = -len(largest) % size
    padded = torch.nn.functional.pad(largest, (0, short, 0, short))
    n = len(padded) // size
    return padded.view(n, size, n, size).amax((1, 3))


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `ghost_attention`: maps.json with one dialogue binned, and for both
    models the attention on the instruction by turn."""
    village, base = world.load(), upstream["ghost_base"]
    vocabulary, lists = base.tokenizer(), read_lists(base.path)
    turns = max(config.ghost.test_turns)
    shown = _dialogues(village, lists, turns, seed)
    models = {"no GAtt": base.model(), "GAtt": upstream["ghost"].model()}
    result: dict[str, list[float]] = {}
    maps: dict[str, list] = {}
    for name, model in models.items():
        rows = []
        for messages, wish in shown:
            ids, instruction, answers = marked(vocabulary, messages, wish)
            weights = attention(model, ids)
            rows.append(on_instruction(weights, instruction, answers))
            maps.setdefault(name, binned(weights).tolist())
        result[name] = torch.tensor(rows).mean(0).tolist()
    write_json(out / "maps.json", {"wish": shown[0][1], "bin": BIN, "maps": maps})
    return result


def _dialogues(village: World, lists, turns: int, seed: int) -> list:
    """(messages, wish) of held-out dialogues whose every answer obeys."""
    rng = Random(f"attention {seed}")
    planned = held_out_plans(village, lists, TRAINED, DIALOGUES, turns, seed=seed)
    shown = []
    for plan in planned:
        talk = dialogue(village, plan.prompts, plan.instruction, rng)
        said = []
        for question, answer in zip(talk.questions, talk.answers, strict=True):
            said.append({"role": "user", "content": question})
            said.append({"role": "assistant", "content": answer})
        shown.append((said, text(village, plan.instruction)))
    return shown
