"""What there is to turn from the tokenizer to the first chat model.

The numbers themselves are in `configs/*.yaml`; a default here is a value that
every size shares. Lengths are in tokens. RLHF goes on in `config_rlhf.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from cria.config_reading import fraction, need, not_negative, positive, shares
from cria.world.annotators import STYLES

Dtype = Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where the CPU has it


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a Llama 2 network (section 2.2; the names are Meta's)."""

    dim: int  # width of the residual stream
    n_layers: int
    n_heads: int  # of the queries
    n_kv_heads: int  # of keys and values: fewer than n_heads is grouped-query attention
    vocab_size: int
    multiple_of: int  # the feed-forward width is rounded up to a multiple of this …
    ffn_dim_multiplier: float | None = None  # … after this stretch
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    max_seq_len: int = 4096  # longest context

    def __post_init__(self) -> None:
        positive(self, "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size")
        positive(self, "multiple_of", "norm_eps", "rope_theta", "max_seq_len")
        mult = self.ffn_dim_multiplier
        need(
            mult is None or mult > 0,
            "ffn_dim_multiplier",
            f"{{key}} is {mult}; it must be above 0, or left out",
        )
        need(
            self.dim % self.n_heads == 0,
            "n_heads",
            f"{{key}} {self.n_heads} does not divide dim {self.dim}",
        )
        need(
            self.n_heads % self.n_kv_heads == 0,
            "n_kv_heads",
            f"{{key}} {self.n_kv_heads} does not divide n_heads {self.n_heads}",
        )
        need(
            self.head_dim % 2 == 0,
            "n_heads",
            f"{{key}} {self.n_heads} makes heads of odd width {self.head_dim}, but "
            "RoPE turns pairs",
        )

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.n_heads

    @property
    def ffn_hidden(self) -> int:
        """Width of the feed-forward layer, by Meta's rule (two thirds of 4·dim)."""
        hidden = int(2 * (4 * self.dim) / 3)
        if self.ffn_dim_multiplier is not None:
            hidden = int(self.ffn_dim_multiplier * hidden)
        return self.multiple_of * -(-hidden // self.multiple_of)  # rounded up

    @property
    def n_params(self) -> int:
        """Number of trained weights, exactly."""
        kv_dim = self.n_kv_heads * self.head_dim
        attention = 2 * self.dim * self.dim + 2 * self.dim * kv_dim  # wq wo, wk wv
        feed_forward = 3 * self.dim * self.ffn_hidden  # w1 w2 w3
        norms = 2 * self.dim
        embeddings = 2 * self.vocab_size * self.dim  # input and output are not tied
        layers = self.n_layers * (attention + feed_forward + norms)
        return embeddings + layers + self.dim


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, clipping and the learning-rate schedule (paper sections 2.2, 3.2.2)."""

    lr: float  # the peak
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-5
    weight_decay: float = 0.1
    grad_clip: float = 1.0  # largest norm of the whole gradient
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = 0  # at least this many …
    warmup_frac: float = 0.0  # … and at least this share of all steps
    min_lr_ratio: float = 0.1  # where the cosine ends, as a share of the peak

    def __post_init__(self) -> None:
        positive(self, "lr", "eps", "grad_clip")
        not_negative(self, "weight_decay", "warmup_steps")
        fraction(self, "min_lr_ratio")
        need(
            0 <= self.warmup_frac < 1,
            "warmup_frac",
            f"{{key}} is {self.warmup_frac}; it must be 0 or more and below 1",
        )
        need(
            all(0 <= beta < 1 for beta in self.betas),
            "betas",
            f"{{key}} are {list(self.betas)}; each must be 0 or more and below 1",
        )

    def warmup(self, total_steps: int) -> int:
        """Steps of warm-up in a run of `total_steps`."""
        return max(self.warmup_steps, math.ceil(self.warmup_frac * total_steps))


def warmup_fits(section: object, total_steps: float, what: str) -> None:
    """The warm-up of `section.optim` ends before the training does."""
    optim = section.optim
    need(
        optim.warmup_steps < total_steps,
        "optim.warmup_steps",
        f"{{key}} is {optim.warmup_steps}, but {what} has only {total_steps:.0f} steps",
    )


@dataclass(frozen=True)
class TokenizerConfig:
    """SentencePiece BPE with byte fallback and split digits (section 2.2)."""

    vocab_size: int
    documents: int  # texts of the tiny world to learn pieces from
    whole_words: bool  # ours: each word of the tiny world is one piece
    real_vocab_size: int  # a second tokenizer, for real English
    real_documents: int  # real chats to learn that one from

    def __post_init__(self) -> None:
        positive(self, "vocab_size", "documents", "real_vocab_size", "real_documents")


@dataclass(frozen=True)
class PretrainConfig:
    """Next-token training on a mix of sources (sections 2.1, 2.2)."""

    batch_size: int  # rows
    seq_len: int
    steps: int
    optim: OptimConfig
    mix: dict[str, float]  # source: share of tokens, factual sources up-sampled
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "batch_size", "seq_len", "steps")
        shares(self, "mix")
        warmup_fits(self, self.steps, "pre-training")

    @property
    def tokens(self) -> int:
        """Tokens seen in the whole run."""
        return self.batch_size * self.seq_len * self.steps


@dataclass(frozen=True)
class ScalingConfig:
    """Bigger networks on the same text (section 2.2, Fig. 5)."""

    models: dict[str, ModelConfig]  # smallest first
    batch_size: int  # rows
    seq_len: int
    steps: int
    optim: OptimConfig
    validation_share: float  # of the text, held out
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "batch_size", "seq_len", "steps")
        warmup_fits(self, self.steps, "a run of the scaling curve")
        need(
            0 < self.validation_share < 1,
            "validation_share",
            f"{{key}} is {self.validation_share}; it must be above 0 and below 1",
        )
        sizes = [model.n_params for model in self.models.values()]
        need(
            len(sizes) > 1 and sizes == sorted(sizes),
            "models",
            "{key} must hold two sizes or more, the smallest first",
        )
        for name, model in self.models.items():
            need(
                self.seq_len <= model.max_seq_len,
                "seq_len",
                f"{{key}} {self.seq_len} is longer than models.{name}.max_seq_len "
                f"{model.max_seq_len}",
            )


@dataclass(frozen=True)
class SFTVariant:
    """How one chat model differs from its sibling."""

    annotators: dict[str, float]  # style: share of demonstrations
    data_share: float = 1.0  # of the demonstrations
    seed_offset: int = 0  # added to the run's seed

    def __post_init__(self) -> None:
        shares(self, "annotators", STYLES)
        fraction(self, "data_share")


@dataclass(frozen=True)
class SFTConfig:
    """Supervised fine-tuning on demonstrations (section 3.1)."""

    demonstrations: int
    kinds: dict[str, float]  # kind of prompt: share of demonstrations
    batch_size: int  # rows
    seq_len: int
    epochs: int
    optim: OptimConfig
    separator: bool  # a special token between prompt and answer
    packing: bool  # several demonstrations in one row
    variants: dict[str, SFTVariant]  # the models that preference data compares
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "demonstrations", "batch_size", "seq_len", "epochs")
        shares(self, "kinds")
        warmup_fits(self, self.demonstrations * self.epochs / self.batch_size, "SFT")
