"""Change one thing about SFT and see what it does (paper §3.1).

All arms start from the same base model and take equally many steps. `arm` is a
function of its arguments alone, so that `cria.side_by_side` can run two at once;
speed is the exception: it is measured with the machine to itself, in turns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import median

from cria import checkpoints, packing, world
from cria.config import SFTConfig
from cria.model import Llama
from cria.packing import Rows
from cria.sft import answer_loss, gold, sft_loss, train_sft
from cria.tokenizer import Tokenizer
from cria.training import train


def arm(
    base: Path,
    rows: Rows,
    held_out: Rows,
    config: SFTConfig,
    *,
    steps: int,
    seed: int,
    batch_size: int | None = None,
    separator: bool = False,
    per_kind: int = 40,
    samples: int = 1,
) -> dict:
    """Fine-tune the base model in the folder ``base`` and look at what came out.

    separator: whether the rows hold the piece <sep>, so that prompts get it too.
    samples: how many answers a prompt gets at temperature 1.

    Returns "curve" (steps and training losses), "held_out" (loss in nats a token of
    the answers in ``held_out``), "greedy" and "sampled" (`sft.gold` on dev prompts at
    temperature 0 and 1).
    """
    model = checkpoints.load(base)
    vocabulary = Tokenizer(Path(base) / "tokenizer.model")
    metrics = train_sft(
        model,
        rows,
        config,
        seed=seed,
        batch_size=batch_size,
        steps=steps,
        progress=False,
    )
    judged = {
        name: gold(
            model,
            vocabulary,
            world.load(),
            per_kind=per_kind,
            n=n,
            temperature=temperature,
            seed=seed,
            separator=separator,
        )
        for name, temperature, n in (("greedy", 0, 1), ("sampled", 1, samples))
    }
    curve = [row["step"] for row in metrics], [row["loss"] for row in metrics]
    return {"curve": curve, "held_out": answer_loss(model, held_out), **judged}


def tokens_a_second(
    model: Llama,
    arms: Mapping[str, tuple[Rows, int]],
    config: SFTConfig,
    *,
    steps: int = 8,
    rounds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    """Useful tokens (no padding) trained on a second, for each (rows, batch size).

    The arms take turns, so that a machine that slows down slows all of them; the
    first round warms up and does not count, of the others the median does. The
    model itself is not changed.
    """
    optim = replace(config.optim, warmup_steps=0, warmup_frac=0.0)
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for turn in range(rounds + 1):
        for name, (rows, batch_size) in arms.items():
            metrics = train(
                copy.deepcopy(model),
                packing.batches(rows, batch_size, seed + turn),
                sft_loss,
                optim,
                steps,
                seed=seed,
                dtype=config.dtype,
                log_every=steps,
                progress=False,
            )
            rates[name].append(metrics[-1]["tokens"] / metrics[-1]["seconds"])
    return {name: median(found[1:]) for name, found in rates.items()}
