"""Meta's own checkpoints: `params.json` and `consolidated.NN.pth`.

The names of the weights are ours. A large model is split over several files: the
matrices whose outputs are split are joined on dim 0, those whose inputs are split on
dim 1, and the norms stand in every file.
"""

from pathlib import Path

import torch
from torch import Tensor

from cria.checkpoint_files import (
    NOT_WEIGHTS,
    Source,
    bad_config,
    open_pth,
    read_json,
)
from cria.config import ModelConfig

JOINED_ON_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
JOINED_ON_COLUMNS = ("wo", "w2", "tok_embeddings")


def from_meta(folder: Path) -> Source:
    """Meta's `params.json` and `consolidated.NN.pth`, one file or several."""
    params = read_json(folder / "params.json")
    files = sorted(folder.glob("consolidated.*.pth"))
    wanted = [folder / f"consolidated.{i:02d}.pth" for i in range(len(files))]
    if not files or files != wanted:
        names = ", ".join(file.name for file in files) or "none"
        raise ValueError(
            f"{folder} must hold consolidated.00.pth and those that follow without a "
            f"gap, but it has {names}; copy the missing files."
        )
    shards = [open_pth(file) for file in files]
    try:
        rows = len(shards[0]["tok_embeddings.weight"])
        vocab_size = params.get("vocab_size", -1)
        config = ModelConfig(
            dim=params["dim"],
            n_layers=params["n_layers"],
            n_heads=params["n_heads"],
            n_kv_heads=params.get("n_kv_heads") or params["n_heads"],
            vocab_size=vocab_size if vocab_size > 0 else rows,  # −1: not yet known
            multiple_of=params["multiple_of"],
            ffn_dim_multiplier=params.get("ffn_dim_multiplier"),
            norm_eps=params.get("norm_eps", 1e-5),
            rope_theta=float(params.get("rope_theta", 10000.0)),
        )
    except (KeyError, TypeError, ValueError) as err:
        raise ValueError(bad_config(folder / "params.json", err)) from err
    _check_shard_count(folder, shards, config)
    names = {n for shard in shards for n in shard if not n.endswith(NOT_WEIGHTS)}

    def get(name: str) -> Tensor:
        if absent := [file.name for file, s in zip(files, shards, strict=True)
                      if name not in s]:  # fmt: skip
            raise ValueError(f"{folder / absent[0]} lacks the weight {name}.")
        parts = [shard[name] for shard in shards]
        module = name.split(".")[-2]
        if len(parts) == 1 or module not in JOINED_ON_ROWS + JOINED_ON_COLUMNS:
            return parts[0]
        try:
            return torch.cat(parts, dim=0 if module in JOINED_ON_ROWS else 1)
        except (RuntimeError, IndexError) as err:
            raise ValueError(
                f"The parts of {name} in {folder} do not fit together: {err}."
            ) from err

    return config, names, get


def _check_shard_count(folder: Path, shards: list[dict], config: ModelConfig) -> None:
    wq = shards[0].get("layers.0.attention.wq.weight")
    if wq is None or wq.dim() != 2 or not len(wq) or config.dim % len(wq):
        return  # the comparison of all shapes says what is wrong
    if (count := config.dim // len(wq)) != len(shards):
        raise ValueError(
            f"{folder} holds {len(shards)} of the {count} files consolidated.NN.pth "
            "that the model was split over; copy all of them."
        )
