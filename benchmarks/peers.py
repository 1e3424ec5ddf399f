"""What both benchmarks share: the shapes, the peer, the clock and the table."""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

from cria.config import ModelConfig

SHAPES = {
    "A": ModelConfig(
        dim=128, n_layers=4, n_heads=4, n_kv_heads=2, vocab_size=1024, multiple_of=16
    ),
    "B": ModelConfig(
        dim=256, n_layers=6, n_heads=8, n_kv_heads=4, vocab_size=2048, multiple_of=16
    ),
}


def transformers_llama(config: ModelConfig) -> LlamaForCausalLM:
    """The peer: transformers' Llama of the same shape, float32, fused attention."""
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.dim,
            intermediate_size=config.ffn_hidden,
            num_hidden_layers=config.n_layers,
            num_attention_heads=config.n_heads,
            num_key_value_heads=config.n_kv_heads,
            vocab_size=config.vocab_size,
            max_position_embeddings=config.max_seq_len,
            attn_implementation="sdpa",
        )
    )


@dataclass(frozen=True)
class Row:
    """One line of the table: seconds of every round, ours beside the peer's."""

    name: str
    ours: list[float]
    peer: list[float]
    bar: float | None  # the ratio to reach; None: only reported

    @property
    def ratios(self) -> list[float]:
        return [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        return statistics.median(self.ratios)

    @property
    def passed(self) -> bool:
        return self.bar is None or self.ratio >= self.bar


def alternate(
    contenders: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Run every contender once a round, one after the other: seconds of each.

    What disturbs the machine for a while disturbs all of them. One round before the
    clock starts is not counted, and every other round goes backwards.
    """
    seconds = {name: [] for name in contenders}
    for i in range(rounds + 1):
        for name in list(contenders) if i % 2 else reversed(contenders):
            gc.collect()
            start = time.perf_counter()
            contenders[name]()
            if i > 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def arguments(description: str, rounds: int) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--rounds", type=int, default=rounds, help="default %(default)s"
    )
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--threads", type=int, help="default: torch's own choice")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error("--rounds must be at least 1")
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


def report(rows: list[Row]) -> int:
    """Print the table; the exit status is 1 if a bar was missed."""
    print(
        f"\ntorch {torch.__version__}, transformers {transformers.__version__}, "
        f"{torch.get_num_threads()} threads, {len(rows[0].ours)} rounds\n"
    )
    print(f"{'':36}{'peer':>9}{'ours':>9}{'ratio':>7}  {'middle half':13}bar")
    for row in rows:
        low, high = row.ratios * 2 if len(row.ratios) == 1 else _quartiles(row.ratios)
        peer, ours = (statistics.median(s) * 1e3 for s in (row.peer, row.ours))
        bar = (
            "–" if row.bar is None else f"{row.bar} {'ok' if row.passed else 'MISSED'}"
        )
        print(
            f"{row.name:36}{peer:7.0f}ms{ours:7.0f}ms{row.ratio:6.2f}×"
            f"  {low:.2f} – {high:.2f}  {bar}"
        )
    return 0 if all(row.passed for row in rows) else 1


def _quartiles(ratios: list[float]) -> tuple[float, float]:
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return low, high
