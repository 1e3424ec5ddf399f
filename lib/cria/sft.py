"""Supervised fine-tuning (paper §3.1): demonstrations in, a first chat model out.

The loss is on the answers only; prompts are read, not learnt. Several
demonstrations share a row, strangers to each other (`cria.packing`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cria import chat, checkpoints, packing, world
from cria.config import SFTConfig
from cria.evaluate import answer, held_out, scores, summary
from cria.model import Llama
from cria.packing import Document, Rows
from cria.tokenizer import Tokenizer
from cria.training import lm_loss, train
from cria.world import World
from cria.world.annotators import Demonstration, demonstrations
from cria.world.prompts import mixture


def collect(
    village: World, config: SFTConfig, variant: str, seed: int
) -> list[Demonstration]:
    """The demonstrations that variant a or b of the SFT model learns from."""
    v = config.variants[variant]
    seed += v.seed_offset
    asked = mixture(village, "train", config.demonstrations, dict(config.kinds), seed)
    n = round(v.data_share * config.demonstrations)
    return demonstrations(village, asked, dict(v.annotators), n, seed)


def documents(
    vocabulary: Tokenizer,
    written: Sequence[Demonstration],
    separator: bool = False,
) -> list[Document]:
    """(ids, loss_mask) of each dialogue; only the *last* answer's tokens count.

    Earlier answers are part of the prompt: their own demonstrations teach them.
    """
    encoded = []
    for d in written:
        ids, mask = chat.encode_dialog(vocabulary, d.messages, separator=separator)
        before = len(chat.prompt_ids(vocabulary, d.prompt.messages, separator))
        encoded.append((ids, [m and i >= before for i, m in enumerate(mask)]))
    return encoded


def sft_loss(model: Llama, batch: dict[str, Tensor]) -> tuple[Tensor, dict]:
    """Cross entropy on the answers' tokens (EOS among them), in nats a token."""
    logits = model(batch["ids"], batch["doc_ids"])
    return lm_loss(logits, batch["ids"], batch["loss_mask"]), {}


def train_sft(
    model: Llama,
    rows: Rows,
    config: SFTConfig,
    *,
    seed: int,
    batch_size: int | None = None,
    steps: int | None = None,
    out: Path | None = None,
    label: str = "SFT",
    progress: bool = True,
) -> list[dict]:
    """Fine-tune ``model`` in place over ``rows``; the metrics.

    Without ``steps`` it sees the rows `config.epochs` times.
    """
    batch_size = batch_size or config.batch_size
    steps = steps or packing.n_steps(rows, batch_size, config.epochs)
    metrics = train(
        model,
        packing.batches(rows, batch_size, seed),
        sft_loss,
        config.optim,
        steps,
        out=out,
        seed=seed,
        dtype=config.dtype,
        label=label,
        progress=progress,
    )
    model.eval()
    return metrics


@torch.inference_mode()
def answer_loss(model: Llama, rows: Rows, batch_size: int = 16) -> float:
    """Mean loss in nats over the answers' tokens of rows not trained on."""
    total, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        mask = rows.loss_mask[part]
        logits = model(rows.ids[part], rows.doc_ids[part])
        n = int(mask.sum())
        total += float(lm_loss(logits, rows.ids[part], mask)) * n
        count += n
    return total / count


def gold(
    model: Llama,
    vocabulary: Tokenizer,
    village: World,
    *,
    split: str = "dev",
    per_kind: int = 40,
    temperature: float = 1.0,
    n: int = 1,
    seed: int = 0,
    separator: bool = False,
) -> dict[str, float]:
    """The judge's view of a chat model on prompts it has not been trained on.

    Each prompt is answered ``n`` times. The names are those of `evaluate.summary`.
    """
    asked = held_out(village, split, per_kind)
    answers = answer(
        model,
        vocabulary,
        asked,
        temperature=temperature,
        n=n,
        seed=seed,
        separator=separator,
    )
    return summary(scores(village, answers))


def build(config, seed: int, upstream: dict, out: Path, variant: str) -> dict:
    """Stage `sft_a` or `sft_b`: the base model fine-tuned on that variant's data."""
    village, base = world.load(), upstream["base"]
    vocabulary, model = base.tokenizer(), base.model()
    c = config.sft
    written = collect(village, c, variant, seed)
    docs = documents(vocabulary, written, c.separator)
    lay = packing.pack if c.packing else packing.unpacked
    rows = lay(docs, c.seq_len)
    metrics = train_sft(model, rows, c, seed=seed, out=out, label=f"SFT {variant}")
    checkpoints.save(model, out / "model", vocabulary)
    (out / "training.safetensors").unlink()  # only a run that stopped needs it
    return {
        "demonstrations": len(written),
        "rows": len(rows),
        "fill": rows.fill,
        "loss": metrics[-1]["loss"],
        "seconds": metrics[-1]["seconds"],
    }
