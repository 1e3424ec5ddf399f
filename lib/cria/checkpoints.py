"""Models on disk: our own folders, Meta's and Hugging Face's.

    save(model, "my_model", tokenizer)      # config.json, model.safetensors, …
    model = load("my_model")                # also Meta's and Hugging Face's folders
    export_hf(model, tokenizer, "for_hf")   # transformers, TRL and vLLM go on from here

No pickle is ever executed, and a folder is either whole or not there: it is written
under another name beside its place and renamed at the end.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cria.checkpoint_files import Source, from_safetensors, read_json
from cria.checkpoint_hf import from_hf, heads_of, hf_config_of, hf_name, to_halves
from cria.checkpoint_meta import from_meta
from cria.checkpoint_tokenizer import tokenizer_files
from cria.config import ModelConfig
from cria.model import Llama
from cria.tokenizer import Tokenizer

FORMAT = "cria"
OUR_FILES = {  # what `save` and `export_hf` write, and may replace
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
}


def save(
    model: Llama, path: str | os.PathLike, tokenizer: Tokenizer | None = None
) -> None:
    """Write config.json, model.safetensors and, if given, tokenizer.model.

    An earlier checkpoint at `path` is replaced; a folder that holds anything else is
    left alone (ValueError).
    """
    _check_vocabulary(model, tokenizer)
    with _new_folder(Path(path)) as folder:
        _write_json(
            folder / "config.json", {"format": FORMAT, "model": asdict(model.config)}
        )
        _write_weights(folder, dict(model.named_parameters()))
        if tokenizer is not None:
            tokenizer.save(folder / "tokenizer.model")


def load(path: str | os.PathLike, dtype: torch.dtype | None = None) -> Llama:
    """The model in a folder: our own format, Meta's, or Hugging Face's.

    dtype: of all its weights; left out, the one that the embeddings are stored in.

    The folder may hold `config.json` with safetensors (ours or Hugging Face's, in
    one file or several) or `params.json` with `consolidated.NN.pth` (Meta's).
    Raises FileNotFoundError or ValueError, in one sentence, for a folder that is
    none of these, is incomplete or damaged, or is no Llama 2.
    """
    config, names, get = _source(Path(path))
    with torch.device("meta"):  # shapes only: the weights take their places below
        model = Llama(config)
    shapes = {name: p.shape for name, p in model.named_parameters()}
    _compare(path, "lacks", sorted(set(shapes) - names))
    _compare(path, "holds what Llama 2 does not have:", sorted(names - set(shapes)))
    if dtype is None:
        dtype = get("tok_embeddings.weight").dtype
    if not dtype.is_floating_point:
        raise ValueError(f"{path} holds weights of type {dtype}; Cria needs floats.")
    state = {}
    for name, shape in shapes.items():
        weight = get(name)
        if weight.shape != shape:
            raise ValueError(
                f"{path}: the weight {name} is {tuple(weight.shape)}, but by its "
                f"config it should be {tuple(shape)}; do the two belong together?"
            )
        # A copy of its own: the file may go, and no page of it stays mapped.
        state[name] = torch.empty(shape, dtype=dtype).copy_(weight)
    model.load_state_dict(state, strict=True, assign=True)
    return model


def export_hf(model: Llama, tokenizer: Tokenizer, path: str | os.PathLike) -> None:
    """Write a folder that transformers' `from_pretrained` opens, without a network.

    `AutoModelForCausalLM` gives the same logits, `AutoTokenizer` the same ids, and
    its chat template the layout of `cria.chat`.
    """
    _check_vocabulary(model, tokenizer)
    c, dtype = model.config, model.output.weight.dtype
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    if tokenizer.pad_id >= 0:
        special["pad_token_id"] = tokenizer.pad_id
    weights = {}
    for name, weight in model.named_parameters():
        heads = heads_of(name, c)
        weights[hf_name(name)] = to_halves(weight, heads) if heads else weight
    with _new_folder(Path(path)) as folder:
        _write_json(folder / "config.json", hf_config_of(c, dtype, special))
        _write_json(folder / "generation_config.json", special)
        _write_weights(folder, weights)
        tokenizer.save(folder / "tokenizer.model")
        for name, content in tokenizer_files(tokenizer, c.max_seq_len).items():
            _write_json(folder / name, content)


def _source(path: Path) -> Source:
    """Tell the three formats apart."""
    if not path.is_dir():
        hint = "give its folder" if path.exists() else "check the path"
        raise FileNotFoundError(f"There is no checkpoint folder at {path}; {hint}.")
    # Meta's own repositories may hold both; whole safetensors are the better find.
    if (path / "config.json").is_file() and not (
        (path / "params.json").is_file() and not list(path.glob("*.safetensors"))
    ):
        found = read_json(path / "config.json")
        if found.get("format") != FORMAT:
            return from_hf(path, found)
        try:
            config = ModelConfig(**found["model"])
        except (KeyError, TypeError, ValueError) as err:
            raise ValueError(f"{path / 'config.json'} is damaged: {err}.") from err
        return from_safetensors(config, path / "model.safetensors")
    if (path / "params.json").is_file():
        return from_meta(path)
    raise FileNotFoundError(
        f"{path} holds no model: expected config.json with safetensors, or Meta's "
        "params.json with consolidated.00.pth."
    )


def _compare(path: str | os.PathLike, what: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise ValueError(f"The checkpoint {path} {what} {', '.join(names[:3])}{more}.")


def _check_vocabulary(model: Llama, tokenizer: Tokenizer | None) -> None:
    rows = model.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > rows:
        raise ValueError(
            f"The tokenizer has {tokenizer.vocab_size} pieces, but the model only "
            f"{rows} embeddings: they do not belong together."
        )


@contextlib.contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `path` when all went well."""
    if path.exists() and not _replaceable(path):
        raise ValueError(
            f"{path} exists and is not a checkpoint; choose another place or empty it."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two names beside it, on the same disk: one for the new, one for the old.
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        new, old = beside / "new", beside / "old"
        new.mkdir()
        yield new
        if path.exists():
            os.rename(path, old)
        try:
            os.rename(new, path)
        except BaseException:
            if old.exists():
                os.rename(old, path)
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _replaceable(path: Path) -> bool:
    if not path.is_dir():
        return False
    return {file.name for file in path.iterdir()} <= OUR_FILES


def _write_json(file: Path, content: dict) -> None:
    text = json.dumps(content, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


def _write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    tensors = {name: w.detach().cpu().contiguous() for name, w in weights.items()}
    # transformers refuses a file that does not say which framework wrote it.
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
