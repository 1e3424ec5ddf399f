"""What is to be trained on many processes: the network, its first weights, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from cria.config import ModelConfig, OptimConfig
from cria.model import Llama
from cria.tokenizer import Tokenizer
from cria.training import LossFn

__all__ = ["Inputs", "Job", "check_vocabulary", "empty", "filled"]


@dataclass(frozen=True)
class Inputs:
    """What a job starts from.

    start: the folder of the first weights; None begins with random ones.
    data: a file of one's own instead of the tiny world's data.
    comparisons: the folder of the stage `preferences`.
    """

    tokenizer: Tokenizer
    start: Path | None = None
    data: Path | None = None
    comparisons: Path | None = None


@dataclass(frozen=True)
class Job:
    """Ready to be dealt out: the model is on the meta device, `begin` fills it."""

    model: nn.Module
    begin: Callable[[nn.Module], None]
    batches: Callable[[int], dict[str, Tensor]]
    loss_fn: LossFn
    optim: OptimConfig
    steps: int
    save: Callable[[Mapping[str, Tensor], Path], None]  # the whole weights, a folder
    notes: tuple[str, ...] = ()  # what people should know before it begins


def check_vocabulary(vocabulary: Tokenizer, shape: ModelConfig) -> None:
    """ValueError, before any training, if pieces would have no embedding."""
    if vocabulary.vocab_size > shape.vocab_size:
        raise ValueError(
            f"The tokenizer has {vocabulary.vocab_size} pieces, but the model only "
            f"{shape.vocab_size} embeddings: they do not belong together."
        )


def empty(shape: ModelConfig) -> Llama:
    """A network on the meta device: shapes without memory."""
    with torch.device("meta"):
        return Llama(shape)


def filled(model: nn.Module, found: Mapping[str, Tensor]) -> nn.Module:
    """The empty ``model`` with whole weights, by name."""
    model.load_state_dict(dict(found), strict=True, assign=True)
    return model
