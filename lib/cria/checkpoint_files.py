"""Opening what a checkpoint is made of, without ever running a pickle.

A `Source` is the shape of a model, the names of its weights (Meta's names), and a
function that gets one of them. The weights stay in their files until they are asked
for, so that a full-size model is never in memory twice.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from cria.config import ModelConfig

Source = tuple[ModelConfig, set[str], Callable[[str], Tensor]]
# Tables that some writers keep beside the weights; both are computed anew.
NOT_WEIGHTS = ("rope.freqs", "rotary_emb.inv_freq")


def from_safetensors(config: ModelConfig, file: Path) -> Source:
    """Weights that already have Meta's names and order."""
    tensors = open_safetensors(file)
    return config, set(tensors.keys()), tensors.get_tensor


def open_safetensors(file: Path):
    """An open safetensors file; its tensors are read when they are asked for."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no {file}; the checkpoint is incomplete.")
    try:
        return safe_open(file, framework="pt")
    except (SafetensorError, OSError, ValueError) as err:
        raise ValueError(
            f"{file} is damaged or not a safetensors file ({err}); copy it again."
        ) from err


def open_pth(file: Path) -> dict[str, Tensor]:
    """The named weights of a `.pth` file, mapped into memory, not read."""
    try:
        found = torch.load(file, weights_only=True, mmap=True, map_location="cpu")
    except Exception as err:  # torch raises half a dozen kinds here
        raise ValueError(
            f"{file} is damaged, or holds more than weights and is not opened for "
            "that reason; copy it again from its source."
        ) from err
    if not isinstance(found, dict) or not all(
        isinstance(n, str) and isinstance(t, Tensor) for n, t in found.items()
    ):
        raise ValueError(f"{file} is not a checkpoint: it should hold named weights.")
    return found


def read_json(file: Path) -> dict:
    """A JSON object; ValueError if the file holds anything else."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as err:  # also bytes that are not UTF-8
        raise ValueError(f"{file} is damaged: {err}.") from err
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it should hold a JSON object.")
    return found


def bad_config(file: Path, err: Exception) -> str:
    """The sentence for a file from which no `ModelConfig` can be made."""
    what = f"{err} is missing" if isinstance(err, KeyError) else str(err)
    return f"{file} does not describe a Llama model: {what}."
