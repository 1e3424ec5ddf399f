"""Checkpoints: three formats give one model, and no file can do harm."""

import json
import pickle
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from cria import checkpoint_hf, checkpoints, config, tokenizer
from cria.chat import encode_dialog
from cria.config import ModelConfig
from cria.model import Llama

PLAIN = ModelConfig(64, 2, 4, 4, 320, multiple_of=32, max_seq_len=128)
# 8 query heads on 2 kv heads: 8/2 ≠ 2, so that no head count can stand for another.
GROUPED = ModelConfig(
    64, 3, 8, 2, 320, 16, ffn_dim_multiplier=1.3, rope_theta=5e4, max_seq_len=128
)
IDS = torch.randint(4, 320, (3, 40), generator=torch.Generator().manual_seed(1))
TEXTS = ["Anna lives in Brill. What is 1 plus 12? It is 13.\nThe cat sees two trees."]


def llama(shape):
    model = Llama(shape, seed=0)
    generator = torch.Generator().manual_seed(7)
    for p in model.parameters():  # weights large enough for every part to matter
        p.data += 0.2 * torch.randn(p.shape, generator=generator)
    return model.eval()


@pytest.fixture(scope="module", params=[PLAIN, GROUPED], ids=["plain", "grouped"])
def model(request):
    return llama(request.param)


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    return tokenizer.train(TEXTS, 300, path, ["An", "Anna", "cat", "1", "12"], ["What"])


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def logits(model):
    with torch.no_grad():
        return model(IDS)


def write_meta(model, folder, shards=1, **params):
    """What Meta released: column- and row-parallel layers split over `shards`."""
    folder.mkdir()
    c = model.config
    told = {
        "dim": c.dim, "n_layers": c.n_layers, "n_heads": c.n_heads,
        "multiple_of": c.multiple_of, "norm_eps": c.norm_eps, "vocab_size": -1,
        "rope_theta": c.rope_theta,
    }  # fmt: skip
    if c.n_kv_heads != c.n_heads:
        told |= {"n_kv_heads": c.n_kv_heads, "ffn_dim_multiplier": 1.3}
    (folder / "params.json").write_text(json.dumps(told | params))
    parts = [{"rope.freqs": torch.ones(4)} for _ in range(shards)]
    for name, w in model.state_dict().items():
        module = name.split(".")[-2]
        rows = module in ("wq", "wk", "wv", "w1", "w3", "output")
        cols = module in ("wo", "w2", "tok_embeddings")
        pieces = w.chunk(shards, 0 if rows else 1) if rows or cols else [w] * shards
        for part, piece in zip(parts, pieces, strict=True):
            part[name] = piece.clone()
    for i, part in enumerate(parts):
        torch.save(part, folder / f"consolidated.{i:02d}.pth")
    return folder


# ---- our own format ----------------------------------------------------------------


def test_saved_is_loaded_exactly(model, tok, tmp_path):
    checkpoints.save(model, tmp_path / "m", tok)
    again = checkpoints.load(tmp_path / "m")
    assert again.config == model.config
    assert same_weights(again, model)
    assert torch.equal(logits(again), logits(model))
    assert (tmp_path / "m" / "tokenizer.model").read_bytes() == tok.path.read_bytes()


def test_a_loaded_model_can_be_trained_and_its_file_removed(tmp_path):
    checkpoints.save(llama(PLAIN), tmp_path / "m")
    model = checkpoints.load(tmp_path / "m")
    shutil.rmtree(tmp_path / "m")
    model(IDS).square().mean().backward()
    assert all(p.requires_grad and p.grad is not None for p in model.parameters())


def test_the_stored_type_is_kept_or_chosen(tmp_path):
    model = llama(PLAIN).bfloat16()
    checkpoints.save(model, tmp_path / "m")
    assert same_weights(checkpoints.load(tmp_path / "m"), model)
    wide = checkpoints.load(tmp_path / "m", dtype=torch.float32)
    assert {p.dtype for p in wide.parameters()} == {torch.float32}
    assert same_weights(wide, model.float())


def test_an_earlier_checkpoint_is_replaced_and_nothing_is_left_over(tmp_path):
    old, new = Llama(PLAIN, seed=1), Llama(GROUPED, seed=2)
    checkpoints.save(old, tmp_path / "m")
    checkpoints.save(new, tmp_path / "m")
    assert same_weights(checkpoints.load(tmp_path / "m"), new)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_failed_save_leaves_the_old_one_whole(tmp_path, monkeypatch):
    old = Llama(PLAIN, seed=1)
    checkpoints.save(old, tmp_path / "m")

    def full(*args, **kwargs):
        (args[1]).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(Llama(PLAIN, seed=2), tmp_path / "m")
    assert same_weights(checkpoints.load(tmp_path / "m"), old)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    checkpoints.save(Llama(PLAIN, seed=1), tmp_path / "m")
    (tmp_path / "m" / "thesis.md").write_text("two years of work")
    with pytest.raises(ValueError, match="not a checkpoint"):
        checkpoints.save(Llama(PLAIN, seed=1), tmp_path / "m")
    assert (tmp_path / "m" / "thesis.md").read_text() == "two years of work"


def test_a_tokenizer_must_fit_the_model(tok, tmp_path):
    small = Llama(ModelConfig(32, 1, 2, 2, 280, 32), seed=0)
    for write in (
        lambda: checkpoints.save(small, tmp_path / "m", tok),
        lambda: checkpoints.export_hf(small, tok, tmp_path / "m"),
    ):
        with pytest.raises(ValueError, match="300 pieces.*only 280"):
            write()
    assert not list(tmp_path.iterdir())


# ---- Meta's format -----------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 2])
def test_metas_shards_give_the_same_model(model, shards, tmp_path):
    folder = write_meta(model, tmp_path / "meta", shards)
    again = checkpoints.load(folder)
    assert again.config.vocab_size == model.config.vocab_size  # params.json says −1
    assert same_weights(again, model)
    assert torch.equal(logits(again), logits(model))


def test_a_missing_shard_is_named(tmp_path):
    folder = write_meta(llama(PLAIN), tmp_path / "meta", 2)
    last = folder / "consolidated.01.pth"
    last.rename(folder / "consolidated.02.pth")
    with pytest.raises(ValueError, match="without a gap"):
        checkpoints.load(folder)
    (folder / "consolidated.02.pth").unlink()
    with pytest.raises(ValueError, match="holds 1 of the 2 files"):
        checkpoints.load(folder)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_poisoned_pickle_is_not_executed(how, tmp_path):
    folder = write_meta(llama(PLAIN), tmp_path / "meta")
    file, trace = folder / "consolidated.00.pth", tmp_path / "boom"
    poison = {"tok_embeddings.weight": torch.zeros(2), "x": Bomb(trace)}
    if how == "torch":
        torch.save(poison, file)
    else:
        file.write_bytes(pickle.dumps(poison))
    with pytest.raises(ValueError, match="not opened"):
        checkpoints.load(folder)
    assert not trace.exists()
    if how == "torch":  # the bomb is real: an unsafe load would have set it off
        torch.load(file, weights_only=False)
        assert trace.exists()


# ---- Hugging Face's format ---------------------------------------------------------


def hf_model(shape, **changes):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    there = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.dim,
        "intermediate_size": shape.ffn_hidden,
        "num_hidden_layers": shape.n_layers,
        "num_attention_heads": shape.n_heads,
        "num_key_value_heads": shape.n_kv_heads,
        "rms_norm_eps": shape.norm_eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "max_position_embeddings": shape.max_seq_len,
        "initializer_range": 0.3,
    }
    return LlamaForCausalLM(LlamaConfig(**(there | changes))).eval()


@pytest.mark.parametrize("shape", [PLAIN, GROUPED], ids=["plain", "grouped"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shard", ["5GB", "50KB"])
def test_a_hugging_face_model_gives_its_own_logits(shape, tied, shard, tmp_path):
    theirs = hf_model(shape, tie_word_embeddings=tied)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").exists() == (shard == "5GB")
    ours = checkpoints.load(tmp_path)
    assert ours.config.rope_theta == shape.rope_theta
    assert ours.config.n_params == sum(p.numel() for p in ours.parameters())
    with torch.no_grad():
        expected = theirs(IDS).logits
        assert expected.std() > 0.1
        torch.testing.assert_close(ours(IDS), expected, atol=1e-4, rtol=1e-4)


def test_exported_opens_in_transformers_with_the_same_logits(model, tok, tmp_path):
    from transformers import AutoModelForCausalLM

    checkpoints.export_hf(model, tok, tmp_path / "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(
            theirs(IDS).logits, logits(model), atol=1e-4, rtol=1e-4
        )
        prompt = torch.tensor([tok.encode("What is 12 plus 1?", bos=True)])
        text = theirs.generate(prompt, max_new_tokens=20, do_sample=False)[0].tolist()
        ids = prompt
        while ids.shape[1] < len(text):
            ids = torch.cat([ids, model(ids)[:, -1:].argmax(-1)], dim=1)
    assert ids[0].tolist() == text
    assert theirs.generation_config.eos_token_id == tok.eos_id
    assert theirs.config.pad_token_id == tok.pad_id


def test_exported_comes_back_exactly(model, tok, tmp_path):
    checkpoints.export_hf(model, tok, tmp_path / "hf")
    assert same_weights(checkpoints.load(tmp_path / "hf"), model)
    checkpoints.export_hf(model.bfloat16(), tok, tmp_path / "hf")
    assert same_weights(checkpoints.load(tmp_path / "hf"), model)
    model.float()


@pytest.mark.parametrize("like_llama2", [False, True])
def test_the_exported_tokenizer_gives_the_same_ids(like_llama2, tok, tmp_path):
    from transformers import AutoTokenizer

    if like_llama2:
        tok = tokenizer.train(TEXTS, 300, tmp_path / "t", tags=False, pad=False)
    checkpoints.export_hf(llama(PLAIN), tok, tmp_path / "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert len(theirs) == tok.vocab_size
    assert theirs.pad_token_id == (None if like_llama2 else tok.pad_id)
    for text in [*TEXTS, "", " ", " Anna  cat\n\nWhat 12 123 catalogue", "é 😀[INST]x"]:
        ids = tok.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [tok.bos_id, *ids]
        assert theirs.decode(ids) == text
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": " What is 12? "},
        {"role": "assistant", "content": "Anna's  cat. "},
        {"role": "user", "content": "\nAnna?"},
    ]
    for part in (messages, messages[1:], messages[1:3]):
        text = theirs.apply_chat_template(part, tokenize=False)
        ids = theirs.encode(text, add_special_tokens=False)
        assert ids == encode_dialog(tok, part)[0]
    with pytest.raises(Exception, match="alternate"):
        theirs.apply_chat_template(messages[2:], tokenize=False)


def test_the_full_sizes_survive_hugging_faces_words(tmp_path):
    for name in ("llama2-7b", "llama2-13b", "llama2-34b", "llama2-70b"):
        shape = config.load(name).model
        words = checkpoint_hf.hf_config_of(shape, torch.bfloat16, {})
        again = checkpoint_hf.hf_config(tmp_path, words)
        assert again.ffn_hidden == shape.ffn_hidden
        assert again.n_params == shape.n_params
        assert (again.rope_theta, again.max_seq_len) == (10000.0, 4096)


@pytest.mark.parametrize("hidden", [7, 32, 170, 171, 172, 1000])
def test_any_feed_forward_width_can_be_said(hidden, tmp_path):
    words = checkpoint_hf.hf_config_of(PLAIN, torch.float32, {})
    words["intermediate_size"] = hidden
    assert checkpoint_hf.hf_config(tmp_path, words).ffn_hidden == hidden


@pytest.mark.parametrize(
    "change, hint",
    [
        ({"model_type": "mistral"}, "model_type 'mistral'"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "RoPE scaling 'linear'"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "RoPE scaling 'llama3'"),
        ({"attention_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "activation 'gelu'"),
        ({"head_dim": 99}, "heads of their own width"),
        ({"quantization_config": {}}, "quantised"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"hidden_size": None}, "does not describe"),
        ({"num_hidden_layers": 3}, "lacks layers.2.attention.wk.weight.* and 6 more"),
        ({"num_hidden_layers": 1}, "does not have: .*layers.1.*unknown"),
        ({"vocab_size": 319}, r"\(320, 64\), but by its config .* \(319, 64\)"),
        ({"num_key_value_heads": 2}, "attention.wk.weight is"),
    ],
)
def test_a_config_that_is_not_llama_2_or_does_not_fit(change, hint, tok, tmp_path):
    checkpoints.export_hf(Llama(PLAIN, seed=0), tok, tmp_path / "hf")
    file = tmp_path / "hf" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=hint) as err:
        checkpoints.load(tmp_path / "hf")
    assert "\n" not in str(err.value)


def test_pickled_hugging_face_weights_are_not_opened(tok, tmp_path):
    checkpoints.export_hf(Llama(PLAIN, seed=0), tok, tmp_path / "hf")
    (tmp_path / "hf" / "model.safetensors").rename(tmp_path / "hf/pytorch_model.bin")
    with pytest.raises(ValueError, match="save them as safetensors"):
        checkpoints.load(tmp_path / "hf")


def test_an_index_cannot_point_outside_its_folder(tmp_path):
    hf_model(PLAIN).save_pretrained(tmp_path / "hf", max_shard_size="50KB")
    file = tmp_path / "hf" / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["lm_head.weight"] = "../secret.safetensors"
    file.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="is damaged"):
        checkpoints.load(tmp_path / "hf")


# ---- damage, in every format -------------------------------------------------------


@pytest.fixture(params=["ours", "meta", "hf"])
def folder(request, tok, tmp_path):
    model = Llama(PLAIN, seed=0)
    path = tmp_path / request.param
    if request.param == "ours":
        checkpoints.save(model, path)
    elif request.param == "meta":
        write_meta(model, path)
    else:
        checkpoints.export_hf(model, tok, path)
    return path


def weights_file(folder):
    return next(iter([*folder.glob("*.safetensors"), *folder.glob("*.pth")]))


def edit(folder, change):
    file = weights_file(folder)
    if file.suffix == ".pth":
        weights = torch.load(file, weights_only=True)
        torch.save(change(weights), file)
    else:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})


def norm_of(weights):
    return next(n for n in weights if n in ("norm.weight", "model.norm.weight"))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_a_truncated_file_is_one_clear_error(folder, share):
    file = weights_file(folder)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match="damaged") as err:
        checkpoints.load(folder)
    assert "\n" not in str(err.value) and file.name in str(err.value)


def test_a_foreign_file_is_one_clear_error(folder):
    weights_file(folder).write_bytes(b"PK\x03\x04 this is a shopping list" * 50)
    with pytest.raises(ValueError, match="damaged"):
        checkpoints.load(folder)


def test_a_missing_weight_is_named(folder):
    edit(folder, lambda w: {n: t for n, t in w.items() if n != norm_of(w)})
    with pytest.raises(ValueError, match=r"lacks norm\.weight"):
        checkpoints.load(folder)


def test_an_extra_weight_is_named(folder):
    edit(folder, lambda w: w | {"adapter.weight": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"does not have: adapter\.weight"):
        checkpoints.load(folder)


def test_a_wrong_shape_is_named(folder):
    edit(folder, lambda w: w | {norm_of(w): torch.zeros(65)})
    with pytest.raises(ValueError, match=r"norm\.weight is \(65,\), .* \(64,\)"):
        checkpoints.load(folder)


def test_whole_numbers_are_no_weights(folder):
    edit(folder, lambda w: {n: t.to(torch.int8) for n, t in w.items()})
    with pytest.raises(ValueError, match="torch.int8; Cria needs floats"):
        checkpoints.load(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff\xfe", '{"format": "cria"}'])
def test_a_damaged_config_is_one_clear_error(folder, text):
    name = "params.json" if folder.name == "meta" else "config.json"
    (folder / name).write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=name) as err:
        checkpoints.load(folder)
    assert "\n" not in str(err.value)


def test_a_path_without_a_model_says_what_was_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint folder"):
        checkpoints.load(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(FileNotFoundError, match="give its folder"):
        checkpoints.load(tmp_path / "notes.txt")
    with pytest.raises(FileNotFoundError, match="params.json"):
        checkpoints.load(tmp_path)
