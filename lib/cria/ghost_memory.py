"""Learning something new without losing the rest (ours, after Li & Hoiem 2017).

"Learning without forgetting" needs none of the old data: the model as it was, the
*teacher*, says what it would have said, and the model that learns is held to it,

    loss = cross entropy on the lessons + keep · KL(model ‖ teacher) on the memory.

The memory is the teacher's own sampled answers to questions without an instruction,
and truthful texts. It is not repeated word for word: the teacher's whole distribution
is the standard. The divergence has the direction of PPO's penalty (§3.2.3): what the
teacher would never say is dear. The other way round, as Li & Hoiem have it, belief
spread over nonsense costs little, however absurd it is, and at temperature 1 it is
said. In return, ours lets one of several likely answers go cheaply.

Since the teacher answers for itself, it can be asked anything: in half of the questions
some words are exchanged for others of the questions and the texts, so that the model is
held to it beyond what training asks.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor

from cria import chat, packing, world
from cria.config import GhostConfig, OptimConfig
from cria.model import Llama
from cria.packing import Document, Rows
from cria.provenance import write_json
from cria.sampling import generate
from cria.sft import sft_loss
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype, train
from cria.world import World, corpora
from cria.world.prompts import Prompt, mixture

__all__ = ["beside_each_other", "build", "keeping", "memory", "read_memory"]
__all__ += ["rows_beside", "shaken", "train_keeping"]

MAX_NEW_TOKENS = 48
EXCHANGED = 0.25  # of the words of a question that is shaken


def memory(
    teacher: Llama,
    vocabulary: Tokenizer,
    village: World,
    c: GhostConfig,
    *,
    seed: int,
) -> list[Document]:
    """What the model is held to: `c.own_answers` answers and `c.texts` tokens of texts.

    The answers are sampled from the teacher at temperature 1, to questions
    of `c.wordings` and `c.own_kinds`. Their tokens count, and every token of a text.
    """
    asked = mixture(village, c.wordings, c.own_answers, dict(c.own_kinds), seed)
    texts: list[list[int]] = []
    if c.texts:
        texts = corpora.stream(village, dict(c.text_mix), c.texts, vocabulary, seed)
    words = {word for ids in texts for word in vocabulary.decode(ids).split()}
    asked = shaken(asked, {word for word in words if word.isalpha()}, seed=seed)
    prompts = [chat.prompt_ids(vocabulary, p.messages) for p in asked]
    said = []
    if prompts:
        said = generate(
            teacher,
            prompts,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_id=vocabulary.eos_id,
            seeds=seed,
            dtype=pick_dtype(c.dtype),
        ).lists()
    made: list[Document] = [
        ([*prompt, *ids], [False] * len(prompt) + [True] * len(ids))
        for prompt, ids in zip(prompts, said, strict=True)
    ]
    return made + [(ids, None) for ids in texts]


def build(config, seed: int, upstream: Mapping, out: Path, start: str) -> dict:
    """Stage `ghost_memory`: memory.json, what all that goes on from ``start`` is held
    to. It is sampled once for all of them."""
    teacher, c = upstream[start].model(), config.ghost
    made = memory(teacher, upstream[start].tokenizer(), world.load(), c, seed=seed)
    write_json(out / "memory.json", made)
    answers = [mask for _, mask in made if mask is not None]
    return {
        "answers": len(answers),
        "answer_tokens": sum(map(sum, answers)),
        "tokens": sum(len(ids) for ids, _ in made),
    }


def read_memory(folder: Path) -> list[Document]:
    """The documents of `ghost_memory`."""
    rows = json.loads((folder / "memory.json").read_text("utf-8"))
    return [(ids, mask) for ids, mask in rows]


def shaken(
    asked: Sequence[Prompt], words: Collection[str], *, seed: int
) -> list[Prompt]:
    """The prompts; in every other one, some words are exchanged for those of others, or
    for any of ``words``.

    What such a question means does not matter: nobody but the teacher answers it.
    """
    said = {word for p in asked for _, text in p.turns for word in text.split()}
    pool = sorted(said | set(words))
    rng = Random(f"shaken {seed}")

    def exchanged(text: str) -> str:
        return " ".join(
            rng.choice(pool) if rng.random() < EXCHANGED else word
            for word in text.split()
        )

    return [
        replace(p, turns=tuple((role, exchanged(text)) for role, text in p.turns))
        if i % 2
        else p
        for i, p in enumerate(asked)
    ]


def keeping(teacher: Llama, keep: float) -> Callable:
    """The loss of `train` for batches of `beside_each_other`.

    Nats a token: the mean over the lessons' tokens, plus ``keep`` times the mean over
    the memory's tokens of KL(model ‖ teacher).
    """

    def loss(model: Llama, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
        learnt, _ = sft_loss(model, batch)
        rows = (batch["kept_ids"], batch["kept_doc_ids"])
        counts = batch["kept"][:, 1:]  # token t is foretold at t − 1
        q = model(*rows)[:, :-1][counts].log_softmax(-1)
        with torch.no_grad():
            p = teacher(*rows)[:, :-1][counts].log_softmax(-1)
        kl = F.kl_div(p, q, reduction="sum", log_target=True) / max(len(p), 1)
        parts = {"learnt": learnt, "kl": kl}
        return learnt + keep * kl, {n: float(x.detach()) for n, x in parts.items()}

    return loss


def beside_each_other(
    lessons: Callable[[int], dict], kept: Callable[[int], dict]
) -> Callable[[int], dict]:
    """Rows of lessons and rows of memory in one batch, from two of `packing.batches`.

    The memory's are "kept_ids", "kept_doc_ids" and "kept", their mask.
    """

    def batch(step: int) -> dict[str, Tensor]:
        old = kept(step)
        return lessons(step) | {
            "kept_ids": old["ids"],
            "kept_doc_ids": old["doc_ids"],
            "kept": old["loss_mask"],
        }

    return batch


def rows_beside(c: GhostConfig, seq_len: int, batch_size: int) -> int:
    """Short rows of memory a step: `c.kept` tokens for every token of the lessons, in
    ``batch_size`` rows of ``seq_len``. What is taught for longer would else be paid
    for by the rest.
    """
    return max(1, round(c.kept * batch_size * seq_len / c.teach_seq_len))


def train_keeping(
    model: Llama,
    teacher: Llama,
    lessons: Rows,
    kept: Sequence[Document],
    c: GhostConfig,
    optim: OptimConfig,
    epochs: float,
    *,
    batch_size: int | None = None,
    seed: int,
    out: Path | None = None,
    label: str,
    progress: bool = True,
) -> list[dict]:
    """Train ``model`` in place: ``batch_size`` rows of lessons a step (else the
    config's), and beside them `rows_beside` of the memory, which begins anew as often
    as it must; the metrics.

    With no memory, or a weight `c.keep` of 0, it is plain fine-tuning.
    """
    n = c.batch_size if batch_size is None else batch_size
    batches, loss = packing.batches(lessons, n, seed), sft_loss
    if kept and c.keep > 0:
        rows = packing.pack(kept, c.teach_seq_len)
        beside = rows_beside(c, lessons.ids.shape[1], n)
        others = packing.batches(rows, beside, seed + 1)
        batches, loss = beside_each_other(batches, others), keeping(teacher, c.keep)
    metrics = train(
        model,
        batches,
        loss,
        optim,
        packing.n_steps(lessons, n, epochs),
        out=out,
        seed=seed,
        dtype=c.dtype,
        label=label,
        progress=progress,
    )
    model.eval()
    return metrics
