"""A training step of ours against one of transformers' Llama.

Both: 16 rows of 256 tokens, next-token loss on all of them, clipping at 1.0, AdamW.
Ours is `cria.training.train` as every stage calls it, bfloat16 products where the
CPU has them; theirs is float32 with fused attention (SDPA).
"""

import sys

import peers
import torch

from cria.config import OptimConfig
from cria.model import Llama
from cria.training import lm_loss, pick_dtype, train

STEPS = 2  # a round
BAR = 1.5
OPTIM = OptimConfig(lr=1e-3, schedule="constant", warmup_steps=0)


def our_steps(config, ids):
    model = Llama(config, seed=0)
    batch = {"ids": ids, "loss_mask": torch.ones_like(ids, dtype=torch.bool)}

    def loss_fn(model, batch):
        return lm_loss(model(batch["ids"]), batch["ids"], batch["loss_mask"]), {}

    return lambda: train(
        model, lambda step: batch, loss_fn, OPTIM, STEPS, progress=False
    )


def their_steps(config, ids):
    model = peers.transformers_llama(config).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=OPTIM.lr,
        betas=OPTIM.betas,
        eps=OPTIM.eps,
        weight_decay=OPTIM.weight_decay,
    )

    def steps():
        for _ in range(STEPS):
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIM.grad_clip)
            optimizer.step()
            optimizer.zero_grad()

    return steps


def main() -> int:
    args = peers.arguments(__doc__, rounds=15)
    rows = []
    for shape in args.shapes:
        config = peers.SHAPES[shape]
        ids = torch.randint(config.vocab_size, (16, 256))
        seconds = peers.alternate(
            {"peer": their_steps(config, ids), "ours": our_steps(config, ids)},
            args.rounds,
        )
        dtype = str(pick_dtype("auto")).removeprefix("torch.")
        name = f"{shape}: {STEPS} training steps, {dtype}"
        rows.append(peers.Row(name, seconds["ours"], seconds["peer"], BAR))
    return peers.report(rows)


if __name__ == "__main__":
    sys.exit(main())
