"""Presets hold the paper's numbers, and every mistake is one clear sentence."""

import dataclasses
import json

import pytest
import yaml

from cria import config
from cria.config import Config, ConfigError, ModelConfig, OptimConfig, load

PAPER = {  # size: dim, layers, heads, kv heads, ffn hidden, parameters
    "llama2-7b": (4096, 32, 32, 32, 11008, 6_738_415_616),
    "llama2-13b": (5120, 40, 40, 40, 13824, 13_015_864_320),
    "llama2-34b": (8192, 48, 64, 8, 22016, 33_743_970_304),
    "llama2-70b": (8192, 80, 64, 8, 28672, 68_976_648_192),
}


@pytest.mark.parametrize("name", PAPER)
def test_full_sizes_have_the_paper_s_shapes(name):
    model = load(name).model
    shape = (model.dim, model.n_layers, model.n_heads, model.n_kv_heads)
    assert (*shape, model.ffn_hidden, model.n_params) == PAPER[name]
    assert (model.vocab_size, model.max_seq_len) == (32000, 4096)
    assert (model.norm_eps, model.rope_theta) == (1e-5, 10000.0)


@pytest.mark.parametrize(
    ("name", "peak", "reward_lr", "beta"),
    [
        ("llama2-7b", 3e-4, 1e-5, 0.01),
        ("llama2-13b", 3e-4, 1e-5, 0.01),
        ("llama2-34b", 1.5e-4, 1e-5, 0.005),
        ("llama2-70b", 1.5e-4, 5e-6, 0.005),
    ],
)
def test_full_sizes_train_as_the_paper_prints(name, peak, reward_lr, beta):
    full = load(name)
    adam = {"betas": (0.9, 0.95), "eps": 1e-5, "weight_decay": 0.1, "grad_clip": 1.0}
    cosine = {**adam, "schedule": "cosine", "min_lr_ratio": 0.1}
    assert full.pretrain.optim == OptimConfig(lr=peak, warmup_steps=2000, **cosine)
    assert abs(full.pretrain.tokens / 2.0e12 - 1) < 1e-6
    assert full.reward.optim.lr == reward_lr
    assert (full.reward.batch_size, full.reward.epochs) == (512, 1)
    assert full.reward.optim.warmup(1000) == 30  # 3 %
    assert full.reward.optim.warmup(20) == 5  # but at least 5 steps
    assert full.reward.margins["large"] == (3, 2, 1, 0)
    assert full.reward.margins["small"] == pytest.approx((1, 2 / 3, 1 / 3, 0), abs=1e-6)
    sft = full.sft
    assert (sft.demonstrations, sft.epochs, sft.batch_size) == (27540, 2, 64)
    assert (sft.optim.lr, sft.separator, sft.packing) == (2e-5, True, True)
    assert (full.preferences.pairs, full.preferences.open_pairs) == (1418091, 1501235)
    assert full.ppo.optim == OptimConfig(lr=1e-6, schedule="constant", **adam)
    assert full.ppo.gain_lr == full.ppo.optim.lr and full.ppo.average == 0
    assert (full.ppo.beta, full.ppo.clip, full.ppo.safety_gate) == (beta, 0.2, 0.15)
    assert (full.ppo.batch_size, full.ppo.minibatch_size) == (512, 64)


@pytest.mark.parametrize("name", config.presets())
def test_a_preset_survives_json(name):
    preset = load(name)
    assert preset.profile == name
    assert config.from_dict(json.loads(json.dumps(config.to_dict(preset)))) == preset


def test_ours_come_first_among_the_presets():
    assert config.presets() == ["smoke", "course", "deep", *PAPER]


def test_smoke_is_the_smallest_and_deep_the_largest_of_ours():
    smoke, course, deep = (load(name) for name in ("smoke", "course", "deep"))
    assert smoke.model.n_params < course.model.n_params < deep.model.n_params
    assert smoke.pretrain.tokens < course.pretrain.tokens < deep.pretrain.tokens


def test_presets_lose_no_key_of_their_file():
    """What the YAML says is what the config holds: no key is silently dropped."""

    def holds(tree, section, at):
        for key, value in tree.items():
            have = section[key] if isinstance(section, dict) else getattr(section, key)
            if isinstance(value, dict):
                holds(value, have, f"{at}.{key}")
            else:
                have = list(have) if isinstance(have, tuple) else have
                assert have == pytest.approx(value) if value else have == value, at

    for name in config.presets():
        tree = yaml.safe_load((config._PRESETS / f"{name}.yaml").read_text())
        tree.pop("extends", None)
        holds(tree, load(name), name)


def test_overrides_change_one_thing_and_leave_the_preset_alone():
    before = load("course")
    changed = load(
        "course", **{"pretrain.steps": 100, "sft.variants.a.data_share": 0.5}
    )
    assert changed.pretrain.steps == 100
    assert changed.sft.variants["a"].annotators == before.sft.variants["a"].annotators
    back = dataclasses.replace(changed, pretrain=before.pretrain, sft=before.sft)
    assert back == before == load("course")


def test_a_file_of_one_s_own_extends_a_preset_or_another_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("extends: course\npretrain: {steps: 100}\n")
    (tmp_path / "next.yaml").write_text("extends: mine.yaml\nsft: {epochs: 1}\n")
    mine = load(str(tmp_path / "next.yaml"))
    assert (mine.profile, mine.pretrain.steps, mine.sft.epochs) == ("next", 100, 1)
    assert mine.model == load("course").model


def test_the_shares_of_a_mix_are_replaced_whole(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(
        "extends: course\n"
        "pretrain: {mix: {forum: 0.5, sums: 0.5}}\n"
        "comparisons: {mix_plain: {forum: 0.4, sums: 0.6}}\n"
    )
    assert load(file).pretrain.mix == {"forum": 0.5, "sums": 0.5}


MISTAKES = {  # change: what the sentence must name
    "pretrain.stepps=3": [
        "unknown key pretrain.stepps",
        "did you mean pretrain.steps?",
    ],
    "modell.dim=3": ["unknown key modell", "did you mean model?"],
    "steps=3": ["unknown key steps", "did you mean pretrain.steps?"],
    "pretrain.lr=0.1": ["unknown key pretrain.lr", "did you mean pretrain.optim.lr?"],
    "sft.variants.a.anotators={}": ["sft.variants.a.anotators", "a.annotators?"],
    "pretrain.steps=many": ["pretrain.steps", "a whole number", "'many'"],
    "pretrain.steps=2.5": ["pretrain.steps", "a whole number", "2.5"],
    "pretrain.steps=true": ["pretrain.steps", "a whole number", "True"],
    "ghost.drill_rows=0": ["ghost.drill_rows", "0"],
    "sft.packing=1": ["sft.packing", "true or false"],
    "pretrain.optim.lr=.nan": ["pretrain.optim.lr", "a finite number"],
    "pretrain.optim.betas=[0.9]": ["pretrain.optim.betas", "a list of 2"],
    "pretrain=3": ["pretrain", "a section of keys"],
    "pretrain.mix=[]": ["pretrain.mix", "names, each with"],
    "reward.margin=smal": ["reward.margin", "did you mean small?"],
    "pretrain.dtype=float16": ["pretrain.dtype", "did you mean"],
    "model.n_heads=3": ["model.n_heads 3", "does not divide dim 128"],
    "model.n_kv_heads=3": ["model.n_kv_heads 3", "does not divide n_heads 4"],
    "model.n_heads=128": ["model.n_heads 128", "odd width 1"],
    "model.dim=0": ["model.dim is 0", "above 0"],
    "model.vocab_size=999": ["model.vocab_size is 999", "tokenizer.vocab_size is 1216"],
    "model.ffn_dim_multiplier=-1": ["model.ffn_dim_multiplier is -1"],
    "pretrain.optim.lr=-1": ["pretrain.optim.lr is -1", "above 0"],
    "pretrain.optim.warmup_steps=9999": ["pretrain.optim.warmup_steps is 9999", "2400"],
    "pretrain.optim.betas=[0.9, 1.0]": ["pretrain.optim.betas", "below 1"],
    "pretrain.seq_len=2048": ["pretrain.seq_len 2048", "model.max_seq_len 1024"],
    "ghost.seq_len=2048": ["ghost.seq_len 2048", "model.max_seq_len 1024"],
    "scaling.seq_len=512": ["scaling.seq_len 512", "models.tiny.max_seq_len 256"],
    "pretrain.mix={forum: 0.5}": ["pretrain.mix", "sum to 0.5", "must sum to 1"],
    "pretrain.mix={forum: 2, sums: -1}": ["pretrain.mix.sums is -1", "never negative"],
    "comparisons.mix_plain={forun: 1}": ["comparisons.mix_plain", "forun"],
    "reward.optim.warmup_steps=99999": ["reward.optim.warmup_steps is 99999"],
    "rejection.optim.warmup_steps=99999": ["rejection.optim.warmup_steps is 99999"],
    "ppo.optim.warmup_steps=99999": ["ppo.optim.warmup_steps is 99999"],
    "scaling.models.tiny.vocab_size=10": ["tiny.vocab_size is 10", "real_vocab_size"],
    "comparisons.mix_steps=50": ["comparisons.mix_steps is 50", "50 steps"],
    "sft.variants.a.annotators={exprt: 1}": ["'exprt'", "did you mean expert?"],
    "best_of_n.top_p=0": ["best_of_n.top_p is 0"],
    "best_of_n.temperatures=[]": ["best_of_n.temperatures"],
    "best_of_n.samples=[0, 4]": ["best_of_n.samples"],
    "ppo.minibatch_size=60": ["ppo.minibatch_size 60", "does not divide"],
    "ppo.average=1": ["ppo.average is 1", "below 1"],
    "ppo.temperature=0.8": ["ppo.temperature is 0.8", "at 1"],
    "ppo.safety_gate=1.5": ["ppo.safety_gate is 1.5", "between 0 and 1"],
    "ghost.optim.warmup_steps=9999": ["ghost.optim.warmup_steps is 9999"],
    "sft.optim.warmup_steps=9999": ["sft.optim.warmup_steps is 9999", "SFT has only"],
}


def one_sentence(error, words):
    text = str(error.value)
    assert "\n" not in text and len(text) < 250
    for word in words:
        assert word in text


@pytest.mark.parametrize("change", MISTAKES)
def test_a_wrong_override_is_one_clear_sentence(change):
    key, _, value = change.partition("=")
    with pytest.raises(ConfigError) as error:
        load("course", **{key: yaml.safe_load(value)})
    one_sentence(error, ["course.yaml", *MISTAKES[change]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("extends: course\npretrain: {stepps: 3}", ["pretrain.steps"]),
        ("pretrain: {steps: 3}", ["missing", "extends: course"]),
        ("extends: curse", ["'curse'", "did you mean course?"]),
        ("extends: mine.yaml", ["extends", "circle"]),
        ("extends: [course]", ["extends", "one name"]),
        (
            "extends: course\nsft: {epochs: 1, epochs: 2}",
            ["epochs", "twice", "line 2 "],
        ),
        ("extends: course\nsft: {", ["not valid YAML", "line"]),
        ("- course", ["sections of keys"]),
        ("", ["sections of keys"]),
        ("? [a]\n: 1", ["mine.yaml"]),
        (
            "extends: course\nsft: !!python/object/apply:os.getcwd []",
            ["not valid YAML"],
        ),
    ],
)
def test_a_wrong_file_is_one_clear_sentence(tmp_path, text, words):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load(file)
    one_sentence(error, ["mine.yaml", *words])


def test_an_unknown_preset_lists_the_presets():
    with pytest.raises(ConfigError) as error:
        load("coarse")
    one_sentence(error, ["'coarse'", "did you mean course?", *config.presets()])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        load(tmp_path / "nowhere.yaml")


def test_numbers_written_as_1e_5_are_numbers(tmp_path):
    """YAML reads 1e-5 without a point as text."""
    file = tmp_path / "mine.yaml"
    file.write_text("extends: course\nsft: {optim: {lr: 1e-5}}\n")
    assert load(file).sft.optim.lr == 1e-5


def test_a_model_made_by_hand_is_checked_too():
    with pytest.raises(ValueError, match="n_heads 3 does not divide dim 64"):
        ModelConfig(64, 2, 3, 3, vocab_size=100, multiple_of=16)


def test_sections_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        load("course").model.dim = 1


def test_every_section_says_what_it_is():
    for field in dataclasses.fields(Config):
        section = getattr(load("course"), field.name)
        if dataclasses.is_dataclass(section):
            assert "(section" in type(section).__doc__


@pytest.mark.parametrize("name", ["../course", "a/b", "", ".hidden", "two words"])
def test_a_profiles_name_is_the_name_of_a_folder(name, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(f"extends: course\nprofile: {name!r}\n")
    with pytest.raises(ValueError, match="profile is .* letters, digits"):
        load(own)
