"""What there is to turn in the comparisons beside the road.

The numbers themselves are in `configs/*.yaml`. Lengths are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cria.config_reading import fraction, need, positive, shares
from cria.config_stages import OptimConfig


@dataclass(frozen=True)
class SmallerModel:
    """A network like `model` but smaller, and how long it learns before."""

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    lr: float  # the peak, in pre-training

    def __post_init__(self) -> None:
        positive(self, "dim", "n_layers", "n_heads", "n_kv_heads", "lr")


@dataclass(frozen=True)
class ComparisonsConfig:
    """Small runs beside the road (sections 2.1, 3.1); no stage depends on them."""

    mix_plain: dict[str, float]  # the sources of `pretrain.mix` without up-sampling
    mix_steps: int  # steps of each arm when the two mixes are compared
    few_demonstrations: int  # "quality is all you need" (§3.1): few by experts …
    many_demonstrations: int  # … against many by everyone
    reward_pairs: int  # of each arm when reward models are compared (§3.2.2)
    reward_epochs: int  # of the arm that shows over-fitting …
    reward_epoch_pairs: int  # … on so many pairs
    reward_shares: tuple[float, ...]  # of the pairs: the curve of more and more data
    reward_models: dict[str, SmallerModel]  # smaller than `model`, smallest first

    def __post_init__(self) -> None:
        positive(self, "mix_steps", "few_demonstrations", "many_demonstrations")
        positive(self, "reward_pairs", "reward_epochs", "reward_epoch_pairs")
        shares(self, "mix_plain")
        ok = len(self.reward_shares) > 0 and all(0 < x < 1 for x in self.reward_shares)
        need(ok, "reward_shares", "{key} must be numbers above 0 and below 1")
        need(len(self.reward_models) > 0, "reward_models", "{key} must hold a size")


@dataclass(frozen=True)
class RRHFConfig:
    """How RRHF trains, where it is held against rejection sampling."""

    batch_size: int  # prompts, each with all of its answers
    epochs: int
    optim: OptimConfig

    def __post_init__(self) -> None:
        positive(self, "batch_size", "epochs")


@dataclass(frozen=True)
class RejectionComparisonsConfig:
    """Small runs beside V1 to V4 (section 3.2.3); no stage of the road needs them."""

    prompts: int = 350  # a round of an arm, fewer than a round of the road
    temperature: float = 1.0  # of the arms' samples; the road measures its own
    small_model: str = (
        "small"  # one of comparisons.reward_models: the one that is taught
    )
    forgotten: str = "rhyme"  # the kind that later rounds ask for no more
    fresh_pairs: int = 1600  # held-out comparisons of every round's answers
    rrhf: RRHFConfig = field(
        default_factory=lambda: RRHFConfig(4, 2, OptimConfig(3e-4, warmup_steps=5))
    )
    gold_per_kind: int = 40  # held-out prompts of every kind (or all that there are)
    gold_answers: int = 200  # at least, to the prompts of a kind together

    def __post_init__(self) -> None:
        positive(self, "prompts", "temperature", "fresh_pairs")
        positive(self, "gold_per_kind", "gold_answers")


@dataclass(frozen=True)
class PPOComparisonsConfig:
    """Small runs beside PPO (section 3.2.3); no stage of the road needs them."""

    batch_size: int = 128  # prompts an iteration
    minibatch_size: int = 32
    iterations: int = 20
    kinds: dict[str, float] = field(  # the SFT model has refusals still to learn
        default_factory=lambda: {
            **{"fact": 0.16, "tell": 0.08, "three": 0.11, "sum": 0.12, "rhyme": 0.10},
            **{"translate": 0.14, "followup": 0.10, "harm": 0.06, "borderline": 0.13},
        }
    )
    wordings: str = "train+fresh"  # the splits whose prompts they ask
    lr: float = 1.2e-4  # constant, for so few steps from the SFT model
    hard_lr: float = 5e-4  # … and where it is pushed too far
    betas: tuple[float, ...] = (0.0, 0.03, 0.3)  # … with these weights of the KL
    dev_prompts: int = 36
    look_every: int = 4  # iterations
    few_prompts: int = 90  # at every look
    few_answers: int = 2  # to each of them
    gold_per_kind: int = 40  # held-out prompts of every kind at the end
    gold_answers: int = 100  # at least, to the prompts of a kind together

    def __post_init__(self) -> None:
        positive(self, "batch_size", "minibatch_size", "iterations", "lr", "hard_lr")
        positive(self, "dev_prompts", "look_every", "few_prompts", "few_answers")
        positive(self, "gold_per_kind", "gold_answers")
        shares(self, "kinds")
        ok = len(self.betas) > 0 and min(self.betas) >= 0
        need(ok, "betas", "{key} must be a list of numbers, 0 or more")
        need(
            self.batch_size % self.minibatch_size == 0,
            "minibatch_size",
            f"{{key}} {self.minibatch_size} does not divide batch_size "
            f"{self.batch_size}",
        )


@dataclass(frozen=True)
class SafetyConfig:
    """Small runs on safety data (sections 4.2.3, 4.2.4); no stage of the road needs
    them."""

    helpful: int = 1800  # demonstrations on harmless prompts, the same in every arm …
    safety: int = 400  # … beside so many refusals by experts: all that there are
    shares: tuple[float, ...] = (0.0, 0.01, 0.1, 0.25, 0.5, 1.0)  # of these refusals
    pre_prompt: str = "You are kind and safe."  # in the words of the village
    lesson: int = 500  # demonstrations that teach what it asks for …
    lesson_harm: float = 0.9  # … this share of them refusals
    distilled: int = 320  # training prompts, answered with and without it
    distilled_kinds: dict[str, float] = field(
        default_factory=lambda: {
            **{"harm": 0.4, "borderline": 0.12, "fact": 0.1, "tell": 0.06},
            **{"three": 0.06, "sum": 0.08, "rhyme": 0.06, "translate": 0.06},
            **{"followup": 0.06},
        }
    )
    gold_per_kind: int = 40  # held-out prompts of every kind (or all that there are)
    gold_answers: int = 120  # at least, to the prompts of a kind together

    def __post_init__(self) -> None:
        positive(self, "helpful", "safety", "lesson", "distilled")
        positive(self, "gold_per_kind", "gold_answers")
        fraction(self, "lesson_harm")
        shares(self, "distilled_kinds")
        ok = len(self.shares) > 1 and all(0 <= x <= 1 for x in self.shares)
        need(
            ok and list(self.shares) == sorted(set(self.shares)),
            "shares",
            "{key} must be two or more rising numbers from 0 to 1",
        )
        need(bool(self.pre_prompt.strip()), "pre_prompt", "{key} must hold a text")
