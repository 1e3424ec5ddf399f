"""Every number there is to turn, and `load`, which reads it from YAML.

    config = load("course")                                # a preset
    config = load("course", **{"pretrain.steps": 100})     # … with one change
    config = load("my_village.yaml")                       # a file of your own

The presets are in `configs/`: smoke, course and deep are ours; llama2-7b to
llama2-70b hold the paper's numbers. The sections are in `config_stages.py` (up to
the first chat model), `config_rlhf.py` (all that follows) and
`config_comparisons.py` (small runs beside the road).
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from cria.config_comparisons import (
    ComparisonsConfig,
    PPOComparisonsConfig,
    RejectionComparisonsConfig,
    RRHFConfig,
    SafetyConfig,
)
from cria.config_reading import ConfigError, build, need, read_yaml
from cria.config_rlhf import (
    GRADES,
    BestOfNConfig,
    EvaluateConfig,
    GhostConfig,
    PPOConfig,
    PreferencesConfig,
    RejectionConfig,
    RewardConfig,
)
from cria.config_stages import (
    STYLES,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    ScalingConfig,
    SFTConfig,
    SFTVariant,
    TokenizerConfig,
    warmup_fits,
)

__all__ = [
    "GRADES",
    "STYLES",
    "BestOfNConfig",
    "ComparisonsConfig",
    "Config",
    "ConfigError",
    "EvaluateConfig",
    "GhostConfig",
    "ModelConfig",
    "OptimConfig",
    "PPOComparisonsConfig",
    "PPOConfig",
    "PreferencesConfig",
    "PretrainConfig",
    "RejectionComparisonsConfig",
    "RejectionConfig",
    "RRHFConfig",
    "RewardConfig",
    "SFTConfig",
    "SFTVariant",
    "SafetyConfig",
    "ScalingConfig",
    "TokenizerConfig",
    "from_dict",
    "load",
    "presets",
    "to_dict",
]

_PRESETS = Path(__file__).parent / "configs"
_ORDER = ("smoke", "course", "deep")  # then the full sizes, small to large


@dataclass(frozen=True)
class Config:
    """The whole recipe, one section a stage."""

    profile: str  # the name of the preset or file
    tokenizer: TokenizerConfig
    model: ModelConfig
    pretrain: PretrainConfig
    scaling: ScalingConfig
    sft: SFTConfig
    comparisons: ComparisonsConfig
    preferences: PreferencesConfig
    reward: RewardConfig
    best_of_n: BestOfNConfig
    rejection: RejectionConfig
    ppo: PPOConfig
    ghost: GhostConfig
    evaluate: EvaluateConfig
    rejection_comparisons: RejectionComparisonsConfig = field(
        default_factory=RejectionComparisonsConfig
    )
    ppo_comparisons: PPOComparisonsConfig = field(default_factory=PPOComparisonsConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)

    def __post_init__(self) -> None:
        need(
            re.fullmatch(r"\w[\w.-]*", self.profile) is not None,
            "profile",
            f"{{key}} is {self.profile!r}; it names a folder of recorded seeds, so use "
            "letters, digits, '-', '_' and '.' alone",
        )
        need(
            self.model.vocab_size == self.tokenizer.vocab_size,
            "model.vocab_size",
            f"{{key}} is {self.model.vocab_size}, but tokenizer.vocab_size is "
            f"{self.tokenizer.vocab_size}; they must be equal",
        )
        strange = set(self.comparisons.mix_plain) - set(self.pretrain.mix)
        need(
            not strange,
            "comparisons.mix_plain",
            f"{{key}} names {min(strange, default='')}, which is not a source of "
            "pretrain.mix",
        )
        need(
            self.pretrain.optim.warmup_steps < self.comparisons.mix_steps,
            "comparisons.mix_steps",
            f"{{key}} is {self.comparisons.mix_steps}, no longer than the warm-up of "
            f"{self.pretrain.optim.warmup_steps} steps",
        )
        need(
            {"a", "b", "other"} <= set(self.sft.variants),
            "sft.variants",
            "{key} must hold the variants a, b and other, whose answers preference "
            "data compares",
        )
        taught = self.rejection_comparisons.small_model
        need(
            taught in self.comparisons.reward_models,
            "rejection_comparisons.small_model",
            f"{{key}} is {taught!r}, which is no name in comparisons.reward_models",
        )
        for name, model in self.scaling.models.items():
            need(
                model.vocab_size == self.tokenizer.real_vocab_size,
                f"scaling.models.{name}.vocab_size",
                f"{{key}} is {model.vocab_size}, but tokenizer.real_vocab_size is "
                f"{self.tokenizer.real_vocab_size}; they must be equal",
            )
        self._warmups_fit()
        for stage in ("pretrain", "sft", "rejection", "ghost"):
            length = getattr(self, stage).seq_len
            need(
                length <= self.model.max_seq_len,
                f"{stage}.seq_len",
                f"{{key}} {length} is longer than model.max_seq_len "
                f"{self.model.max_seq_len}",
            )

    def _warmups_fit(self) -> None:
        """For the stages whose number of steps takes more than one section to know."""
        pairs, answers, ppo = self.preferences, self.rejection, self.ppo
        steps = {
            "reward": (pairs.pairs + pairs.open_pairs)
            * self.reward.epochs
            / self.reward.batch_size,
            "rejection": answers.prompts * answers.epochs / answers.batch_size,
            "ppo": ppo.iterations * ppo.batch_size / ppo.minibatch_size,
        }
        for stage, n in steps.items():
            try:
                warmup_fits(getattr(self, stage), n, stage)
            except ConfigError as error:
                raise error.inside(stage) from None


def presets() -> list[str]:
    """Names that `load` knows: ours first, then the paper's sizes."""
    names = [path.stem for path in _PRESETS.glob("*.yaml")]
    return sorted(
        names, key=lambda n: (_ORDER.index(n) if n in _ORDER else 9, len(n), n)
    )


def load(name_or_path: str | Path, **overrides: Any) -> Config:
    """Read a preset or a YAML file; dotted overrides come last.

    A file may begin with `extends: NAME`, a preset or a file beside it, and then
    says only what differs. Raises FileNotFoundError, or `ConfigError` with one
    sentence that names the file, the key and the nearest right name.
    """
    path = _find(name_or_path, Path())
    config = _read(path, ())
    if not overrides:
        return config
    try:
        return build(Config, _tree(overrides), base=config)
    except ConfigError as error:
        raise error.in_file(f"{path.name} with your changes") from None


def to_dict(config: Any) -> dict:
    """A config, or one section, as plain dicts and lists (for JSON or YAML)."""

    def plain(value: Any) -> Any:
        if is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return plain(config)


def from_dict(tree: dict, cls: type = Config) -> Any:
    """The way back from `to_dict`, with every check."""
    return build(cls, tree)


def _find(name: str | Path, folder: Path) -> Path:
    """The file a name means: a preset, or a path seen from `folder`."""
    text = str(name)
    if isinstance(name, Path) or "/" in text or text.endswith((".yaml", ".yml")):
        return folder / Path(name).expanduser()
    if text not in presets():
        close = difflib.get_close_matches(text, presets(), n=1, cutoff=0.5)
        first = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(
            "",
            f"there is no preset {text!r}; {first}"
            f"The presets are {', '.join(presets())}; a file's name ends in .yaml",
        )
    return _PRESETS / f"{text}.yaml"


def _read(path: Path, seen: tuple[Path, ...]) -> Config:
    """The config in one file, on top of those it extends."""
    tree = read_yaml(path)
    parent = tree.pop("extends", None)
    try:
        need(path.resolve() not in seen, "extends", "{key} goes round in a circle")
        base = None
        if parent is not None:
            need(isinstance(parent, str), "extends", "{key} must be one name")
            base = _read(_find(parent, path.parent), (*seen, path.resolve()))
        return build(Config, {"profile": path.stem, **tree}, base)
    except ConfigError as error:
        raise error.in_file(path.name) from None


def _tree(overrides: dict[str, Any]) -> dict:
    """`{"pretrain.steps": 10}` as `{"pretrain": {"steps": 10}}`."""
    tree: dict = {}
    for dotted, value in overrides.items():
        *sections, key = dotted.split(".")
        here = tree
        for section in sections:
            here = here.setdefault(section, {})
            need(isinstance(here, dict), dotted, "{key} is changed twice")
        if isinstance(value, dict) and isinstance(here.get(key), dict):
            value = {**here[key], **value}
        here[key] = value
    return tree
