"""Weights of full size: mapped, never held twice, and handed on without a change."""

import dataclasses
import json
import re
import sys

import pytest
import torch
from safetensors import safe_open
from test_checkpoints import GROUPED, IDS, PLAIN, TEXTS, llama, logits, write_meta

from cria import checkpoints, cli, config, real_weights, talk, tokenizer
from cria.config import ModelConfig
from cria.manner import manner, vocabulary
from cria.real_weights import export, export_model, open_mapped, weights

# As the 70B: as many key heads as files, and more query heads than that.
EIGHT = ModelConfig(128, 2, 16, 8, 320, 16, ffn_dim_multiplier=1.3, max_seq_len=128)
LLAMA2_TEMPLATE = "{{ '[INST] <<SYS>>' }}"


@pytest.fixture(scope="module")
def tok(tmp_path_factory):
    """As Llama 2's: no pad piece, and the tags are plain text."""
    path = tmp_path_factory.mktemp("tok") / "tokenizer.model"
    return tokenizer.train(TEXTS, 300, path, tags=False, pad=False)


def written(layout, model, folder, tok):
    kind, _, shards = layout.partition(" ")
    if kind == "ours":
        checkpoints.save(model, folder, tok)
    elif kind == "meta":
        write_meta(model, folder, int(shards))
        tok.save(folder / "tokenizer.model")
    else:
        export_model(model, folder, tok, shard_bytes=float(shards))
    return folder


LAYOUTS = ["ours", "meta 1", "meta 2", "hf 1e9", "hf 5e4"]


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# ---- opened where they lie ---------------------------------------------------------


@pytest.mark.parametrize("shape", [PLAIN, GROUPED], ids=["plain", "grouped"])
def test_mapped_is_what_was_saved(layout, shape, tok, tmp_path):
    model = llama(shape)
    mapped = open_mapped(written(layout, model, tmp_path / "m", tok))
    assert same_weights(mapped, model)
    assert torch.equal(logits(mapped), logits(model))
    assert not any(p.requires_grad for p in mapped.parameters())


@pytest.mark.parametrize("shards", [4, 8])
def test_a_model_cut_like_the_70b(shards, tok, tmp_path):
    model = llama(EIGHT)
    folder = written(f"meta {shards}", model, tmp_path / "m", tok)
    assert same_weights(open_mapped(folder), model)
    export(folder, tmp_path / "hf", tok, shard_bytes=1e5)
    assert same_weights(checkpoints.load(tmp_path / "hf"), model)


def mappings(folder):
    """(first, last) addresses of this process that show a file of the folder."""
    with open("/proc/self/maps") as lines:
        for line in lines:
            if str(folder) in line:
                first, last = line.split()[0].split("-")
                yield int(first, 16), int(last, 16)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("layout", "copied"),
    [
        ("ours", r"^$"),
        ("meta 1", r"^$"),
        ("hf 1e9", r"attention\.w[qk]\.weight$"),
        ("hf 5e4", r"attention\.w[qk]\.weight$"),
        ("meta 2", r"^(?!.*norm)"),  # a cut matrix stands in no file as it is
    ],
)
def test_only_what_no_file_holds_is_copied(layout, copied, tok, tmp_path):
    folder = written(layout, llama(GROUPED), tmp_path / "m", tok)
    mapped = open_mapped(folder)
    places = list(mappings(folder))
    for name, p in mapped.named_parameters():
        in_file = any(first <= p.data_ptr() < last for first, last in places)
        assert in_file != bool(re.search(copied, name)), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_stored_type_is_spoken_with(layout, dtype, tok, tmp_path):
    folder = written(layout, llama(PLAIN).to(dtype), tmp_path / "tiny-chat", tok)
    speaker = talk.speaker(str(folder), config.load("smoke"), say=lambda line: None)
    assert {p.dtype for p in speaker.model.parameters()} == {dtype}
    speaker.answer([{"role": "user", "content": "Anna?"}], max_new_tokens=4)


def test_a_weight_of_the_wrong_shape_is_one_sentence(tok, tmp_path):
    folder = written("hf 1e9", llama(PLAIN), tmp_path / "m", tok)
    file = folder / "config.json"
    words = json.loads(file.read_text()) | {"intermediate_size": 200}
    file.write_text(json.dumps(words))
    with pytest.raises(ValueError, match=r"w1.weight is .* should be \(200, 64\)"):
        open_mapped(folder)
    file.write_text(json.dumps(words | {"num_hidden_layers": 3}))
    with pytest.raises(ValueError, match="lacks layers.2"):
        weights(folder)


# ---- handed on ---------------------------------------------------------------------


@pytest.mark.parametrize("source", ["ours", "meta 2", "hf 1e9"])
@pytest.mark.parametrize("most", [4e4, 1e5, 1e9])
def test_from_any_layout_into_files_of_any_size(source, most, tok, tmp_path):
    model = llama(GROUPED)
    folder = written(source, model, tmp_path / "m", tok)
    export(folder, tmp_path / "hf", tok, shard_bytes=most)
    assert same_weights(checkpoints.load(tmp_path / "hf"), model)
    files = sorted((tmp_path / "hf").glob("*.safetensors"))
    assert (len(files) == 1) == (most == 1e9)
    total = 0
    for file in files:
        with safe_open(file, "pt") as tensors:
            sizes = [tensors.get_tensor(n).nbytes for n in tensors.keys()]  # noqa: SIM118
        assert sum(sizes) <= most or len(sizes) == 1
        total += sum(sizes)
    if len(files) > 1:
        index = json.loads((tmp_path / "hf/model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == total
        assert set(index["weight_map"].values()) == {file.name for file in files}


@pytest.mark.parametrize("most", [5e4, 1e9])
def test_transformers_and_trl_go_on_from_there(most, tok, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model = llama(GROUPED)
    write_meta(model, tmp_path / "meta", 2)
    export(tmp_path / "meta", tmp_path / "hf", tok, shard_bytes=most)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, logits(model), atol=1e-4, rtol=0)
    speak = AutoTokenizer.from_pretrained(tmp_path / "hf")
    speak.pad_token = speak.eos_token
    turns = [("user", "Where does Anna live?"), ("assistant", "In Brill.")]
    messages = [{"role": role, "content": text} for role, text in turns]
    settings = SFTConfig(
        output_dir=tmp_path / "out", max_steps=1, report_to=[], use_cpu=True,
        per_device_train_batch_size=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=str(tmp_path / "hf"),
        args=settings,
        train_dataset=Dataset.from_list([{"messages": messages}]),
        processing_class=speak,
    )
    assert trainer.train().training_loss > 0


def test_what_vllm_looks_for_is_there(tok, tmp_path):
    """vLLM is not at hand: these are the files and words that it reads."""
    export_model(llama(PLAIN), tmp_path / "hf", tok, dtype=torch.bfloat16)
    read = {f.name: f for f in (tmp_path / "hf").iterdir()}
    words = json.loads(read["config.json"].read_text())
    assert words["architectures"] == ["LlamaForCausalLM"]
    assert words["torch_dtype"] == "bfloat16"
    assert json.loads(read["generation_config.json"].read_text())["eos_token_id"] == 2
    assert "[INST]" in read["tokenizer_config.json"].read_text()
    assert {"tokenizer.json", "model.safetensors"} <= set(read)


def test_a_model_without_dialogue_gets_no_chat_template(tok, tmp_path):
    export_model(llama(PLAIN), tmp_path / "hf", tok, chat=False)
    assert "[INST]" not in (tmp_path / "hf/tokenizer_config.json").read_text()
    assert manner(tmp_path / "hf", False).plain


def test_an_export_is_whole_or_not_there(tok, tmp_path):
    model = llama(PLAIN)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/a.md").write_text("two years of work")
    with pytest.raises(ValueError, match="exists already"):
        export_model(model, tmp_path / "thesis", tok)
    folder = write_meta(model, tmp_path / "meta", 2)
    broken = torch.load(folder / "consolidated.01.pth")
    broken["output.weight"] = broken["output.weight"][:5]
    torch.save(broken, folder / "consolidated.01.pth")
    with pytest.raises(ValueError, match="output.weight"):
        export(folder, tmp_path / "hf", tok, shard_bytes=5e4)
    assert {f.name for f in tmp_path.iterdir()} == {"thesis", "meta"}
    big = tokenizer.train(TEXTS * 9, 340, tmp_path / "big.model", list("abcdefghijklm"))
    with pytest.raises(ValueError, match="340 pieces.*only 320"):
        export_model(model, tmp_path / "hf", big)


# ---- spoken to in its own manner ---------------------------------------------------


@pytest.mark.parametrize(
    ("name", "template", "plain"),
    [
        ("Llama-2-7b-hf", None, True),
        ("Llama-2-7b-chat-hf", None, False),
        ("anything", LLAMA2_TEMPLATE, False),
    ],
)
def test_a_hugging_face_folder_says_how(name, template, plain, tok, tmp_path):
    export_model(llama(PLAIN), tmp_path / name, tok, chat=False)
    settings = tmp_path / name / "tokenizer_config.json"
    words = json.loads(settings.read_text())
    settings.write_text(json.dumps(words | {"chat_template": template}))
    found = manner(tmp_path / name, separator=True)
    assert (found.plain, found.separator) == (plain, False)


@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_another_chat_format_is_not_guessed_at(place, tok, tmp_path):
    export_model(llama(PLAIN), tmp_path / "zephyr-chat", tok, chat=False)
    template = "{{ '<|user|>' }}"
    text = template if "jinja" in place else json.dumps({"chat_template": template})
    (tmp_path / "zephyr-chat" / place).write_text(text)
    with pytest.raises(ValueError, match="not Llama 2's.*--format text"):
        manner(tmp_path / "zephyr-chat", False)
    assert manner(tmp_path / "zephyr-chat", False, "text").plain


def test_metas_download_talks_with_the_tokenizer_beside_it(tok, tmp_path, monkeypatch):
    for name in ("llama-2-7b", "llama-2-7b-chat"):
        write_meta(llama(PLAIN), tmp_path / name, 2)
    with pytest.raises(FileNotFoundError, match="no tokenizer.model"):
        vocabulary(tmp_path / "llama-2-7b")
    tok.save(tmp_path / "tokenizer.model")
    asked = []
    real = talk.Speaker._prompt
    monkeypatch.setattr(
        talk.Speaker, "_prompt", lambda *a: asked.append(real(*a)) or asked[-1]
    )
    # The profile's own checkpoints have a separator; Meta's release has none.
    settings = config.load("llama2-7b")
    for name in ("llama-2-7b", "llama-2-7b-chat"):
        speaker = talk.speaker(str(tmp_path / name), settings, say=lambda line: None)
        speaker.answer([{"role": "user", "content": "Anna"}], max_new_tokens=2)
    assert [tok.decode(ids) for ids in asked] == ["Anna", "[INST] Anna [/INST]"]
    assert all(ids[0] == tok.bos_id for ids in asked)


def test_the_base_stage_is_not_taken_for_a_chat_model(tok, tmp_path):
    checkpoints.save(llama(PLAIN), tmp_path / "base-1" / "model", tok)
    assert not manner(tmp_path / "base-1/model", False).plain
    (tmp_path / "base-1" / "provenance.json").write_text('{"stage": "base"}')
    assert manner(tmp_path / "base-1/model", True).plain
    assert not manner(tmp_path / "base-1/model", True, "chat").plain


# ---- the command -------------------------------------------------------------------


def test_cria_export_and_chat_on_a_path(tok, tmp_path, capsys):
    write_meta(
        llama(dataclasses.replace(PLAIN, vocab_size=300)), tmp_path / "tiny-chat"
    )
    tok.save(tmp_path / "tokenizer.model")
    here, out = str(tmp_path / "tiny-chat"), str(tmp_path / "hf")
    assert cli.main(["export", here, out, "--dtype", "bfloat16"]) == 0
    assert checkpoints.load(out).output.weight.dtype == torch.bfloat16
    assert cli.main(["export", here, out]) == 1
    assert "exists already" in capsys.readouterr().err
    assert cli.main(["export", "sft_aa", out]) == 2
    assert "did you mean sft_a?" in capsys.readouterr().err
    assert cli.main(["chat", out, "--prompt", "Anna?", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr()
    assert "its chat template is Llama 2's" in said.err
    assert cli.main(["chat", here, "--prompt", "Anna", "--format", "text"]) == 0
    assert "continues text: as you asked for" in capsys.readouterr().err


def test_the_real_sizes_are_cut_into_files_as_the_world_does(tmp_path):
    """Without any memory: the plan of the files of the 70B in bfloat16."""
    shape = config.load("llama2-70b").model
    shapes = {n: p.shape for n, p in real_weights._empty(shape).named_parameters()}
    files = real_weights.shards(shapes, 2, real_weights.SHARD_BYTES)
    assert [n for _, names in files for n in names] == list(shapes)
    sizes = [sum(2 * shapes[n].numel() for n in names) for _, names in files]
    assert sum(sizes) == 2 * 68_976_648_192 and max(sizes) <= 5e9
    assert files[0][0] == f"model-00001-of-{len(files):05}.safetensors"
