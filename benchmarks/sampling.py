"""Sampling of ours against transformers' `generate`.

Both: prompts of 32 tokens, 64 new ones, temperature 1, no end-of-sequence, a key and
value cache, the same number of threads. Ours also returns log-probs.
"""

import sys

import peers
import torch

from cria.model import Llama
from cria.sampling import generate
from cria.training import pick_dtype

PROMPT, NEW = 32, 64
BARS = {("A", 64): 1.7, ("B", 64): 1.7, ("A", 1): 2.5}  # B at one row: see README


def contenders(config, batch):
    ours, theirs = Llama(config, seed=0), peers.transformers_llama(config).eval()
    ids = torch.randint(3, config.vocab_size, (batch, PROMPT))
    prompts = ids.tolist()

    def sample(dtype):
        return lambda: generate(
            ours, prompts, max_new_tokens=NEW, eos_id=-1, dtype=dtype
        )

    found = {
        "peer": lambda: theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
            eos_token_id=None,
        ),
        "float32": sample(torch.float32),
    }
    if batch > 1 and pick_dtype("auto") is torch.bfloat16:  # slow at one row
        found["bfloat16"] = sample(torch.bfloat16)
    return found


def main() -> int:
    args = peers.arguments(__doc__, rounds=15)
    rows = []
    for shape in args.shapes:
        for batch in (64, 1):
            seconds = peers.alternate(
                contenders(peers.SHAPES[shape], batch), args.rounds
            )
            peer = seconds.pop("peer")
            found = [
                peers.Row(f"{shape}: batch {batch}, {dtype}", ours, peer, None)
                for dtype, ours in seconds.items()
            ]
            # The bar is for the better type: the one that a learner would choose.
            best = max(range(len(found)), key=lambda i: found[i].ratio)
            bar = BARS.get((shape, batch))
            found[best] = peers.Row(found[best].name, found[best].ours, peer, bar)
            rows += found
    return peers.report(rows)


if __name__ == "__main__":
    sys.exit(main())
