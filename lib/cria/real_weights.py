"""Weights of full size: opened where they lie, and handed on part by part.

    model = open_mapped("Llama-2-7b-chat")           # at once; nothing is copied
    export("Llama-2-7b-chat", "for_hf", tokenizer)   # one file's worth in memory
    get = weights("Llama-2-70b").get                 # one weight at a time

`checkpoints.load` makes a copy to train on. A model of 140 GB that is only to be read,
or to be dealt out to many processes, must not be in memory twice, and need not be once.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cria import checkpoints
from cria.checkpoint_hf import heads_of, hf_config_of, hf_name, to_halves
from cria.checkpoint_tokenizer import tokenizer_files
from cria.config import ModelConfig
from cria.model import Llama
from cria.provenance import write_json
from cria.tokenizer import Tokenizer

__all__ = ["Weights", "export", "export_model", "open_mapped", "weights"]

SHARD_BYTES = 5e9  # of one file of an export; transformers' own default


@dataclass(frozen=True)
class Weights:
    """What a checkpoint holds, still in its files.

    shapes: every weight by Meta's name.  get: reads one of them, whole.
    dtype: the one that the embeddings are stored in.
    """

    config: ModelConfig
    shapes: Mapping[str, torch.Size]
    get: Callable[[str], Tensor]
    dtype: torch.dtype


def weights(path: str | os.PathLike) -> Weights:
    """Look into a folder of ours, Meta's or Hugging Face's; read nothing yet.

    Raises what `checkpoints.load` raises, and `get` too: a ValueError for a weight
    whose shape is not the one its config says.
    """
    config, names, read = checkpoints._source(Path(path))
    shapes = {n: p.shape for n, p in _empty(config).named_parameters()}
    checkpoints._compare(path, "lacks", sorted(set(shapes) - names))
    checkpoints._compare(
        path, "holds what Llama 2 does not have:", sorted(names - set(shapes))
    )

    def get(name: str) -> Tensor:
        weight = read(name)
        if weight.shape != shapes[name]:
            raise ValueError(
                f"{path}: the weight {name} is {tuple(weight.shape)}, but by its "
                f"config it should be {tuple(shapes[name])}; do the two belong "
                "together?"
            )
        return weight

    dtype = get("tok_embeddings.weight").dtype
    if not dtype.is_floating_point:
        raise ValueError(f"{path} holds weights of type {dtype}; Cria needs floats.")
    return Weights(config, shapes, get, dtype)


def open_mapped(path: str | os.PathLike) -> Llama:
    """A model for reading only, whose weights are the pages of its files.

    A page comes into memory when it is first used, and the system may drop it again.
    Copied are only weights that no file holds as they are: those that Meta split over
    several files, and Hugging Face's q and k, whose rows stand in another order.
    The files must stay in their place as long as the model lives.
    """
    found = weights(path)
    model = _empty(found.config)
    model.load_state_dict(
        {name: found.get(name).to(found.dtype) for name in found.shapes}, assign=True
    )
    return model.requires_grad_(False).eval()


def export(
    path: str | os.PathLike,
    out: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype | None = None,
    chat: bool = True,
    shard_bytes: float = SHARD_BYTES,
) -> None:
    """Turn any checkpoint into a folder for transformers, TRL and vLLM.

    Weights go from file to file, at most ``shard_bytes`` of them at a time.
    dtype: of the new files; left out, the stored one.  chat: give the tokenizer
    Llama 2's chat template; False for a model that has learnt no dialogue.
    Raises ValueError where ``out`` holds something already.
    """
    _write(weights(path), Path(out), tokenizer, dtype, chat, shard_bytes)


def export_model(
    model: Llama,
    out: str | os.PathLike,
    tokenizer: Tokenizer,
    *,
    dtype: torch.dtype | None = None,
    chat: bool = True,
    shard_bytes: float = SHARD_BYTES,
) -> None:
    """`export`, for a model in memory."""
    held = {name: p.detach() for name, p in model.named_parameters()}
    found = Weights(
        model.config,
        {name: p.shape for name, p in held.items()},
        held.__getitem__,
        model.output.weight.dtype,
    )
    _write(found, Path(out), tokenizer, dtype, chat, shard_bytes)


def shards(
    shapes: Mapping[str, torch.Size], width: int, most: float
) -> list[tuple[str, list[str]]]:
    """(file name, weights in it): in order, at most ``most`` bytes a file.

    width: bytes of a number. A weight that is larger gets a file of its own.
    """
    groups: list[list[str]] = []
    room = -1.0
    for name, shape in shapes.items():
        size = shape.numel() * width
        if size > room:
            groups.append([])
            room = most
        groups[-1].append(name)
        room -= size
    if len(groups) == 1:
        return [("model.safetensors", groups[0])]
    n = len(groups)
    return [(f"model-{i:05}-of-{n:05}.safetensors", g) for i, g in enumerate(groups, 1)]


def _write(found, out: Path, tokenizer, dtype, chat: bool, shard_bytes) -> None:
    c, dtype = found.config, dtype or found.dtype
    if tokenizer.vocab_size > c.vocab_size:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} pieces, but the model only "
            f"{c.vocab_size} embeddings: they do not belong together."
        )
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    if tokenizer.pad_id >= 0:
        special["pad_token_id"] = tokenizer.pad_id
    files = shards(found.shapes, dtype.itemsize, shard_bytes)
    with _new_folder(out) as folder:
        write_json(folder / "config.json", hf_config_of(c, dtype, special))
        write_json(folder / "generation_config.json", special)
        for file, names in files:
            tensors = dict(_hf_weights(found, names, dtype))
            save_file(tensors, folder / file, metadata={"format": "pt"})
        if len(files) > 1:
            size = sum(s.numel() for s in found.shapes.values()) * dtype.itemsize
            where = {hf_name(name): file for file, names in files for name in names}
            index = {"metadata": {"total_size": size}, "weight_map": where}
            write_json(folder / "model.safetensors.index.json", index)
        tokenizer.save(folder / "tokenizer.model")
        for file, content in tokenizer_files(tokenizer, c.max_seq_len).items():
            if not chat:
                content.pop("chat_template", None)
            write_json(folder / file, content)


def _hf_weights(found, names, dtype) -> Iterator[tuple[str, Tensor]]:
    for name in names:
        weight, heads = found.get(name), heads_of(name, found.config)
        weight = to_halves(weight, heads) if heads else weight
        yield hf_name(name), weight.to(device="cpu", dtype=dtype).contiguous()


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, renamed to ``path`` when all went well."""
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ValueError(f"{path} exists already; choose another place.")
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        beside.chmod(0o755)  # mkdtemp's 0700 would hide it from others
        yield beside
        os.replace(beside, path)  # also over an empty folder
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _empty(config: ModelConfig) -> Llama:
    with torch.device("meta"):  # shapes without memory
        return Llama(config)
