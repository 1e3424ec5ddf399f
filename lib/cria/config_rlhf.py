"""What there is to turn in RLHF, from preference data to the last evaluation.

The numbers themselves are in `configs/*.yaml`. Lengths are in tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cria.config_reading import fraction, need, not_negative, positive, shares
from cria.config_stages import Dtype, OptimConfig, warmup_fits
from cria.world.annotators import GROUNDS

GRADES = ("significantly", "better", "slightly", "negligibly")  # of a preference


@dataclass(frozen=True)
class PreferencesConfig:
    """Which of two answers annotators prefer, and by how much (section 3.2.1)."""

    pairs: int  # comparisons, helpfulness and safety together
    safety_share: float  # of the comparisons
    open_pairs: int  # right-or-wrong votes that play the open-source sets
    test_pairs: int  # held out, on prompts of their own
    batches: int  # weekly batches
    temperatures: tuple[float, ...]  # of the two sampled answers, drawn at random
    kinds: dict[str, dict[str, float]]  # ground: {kind of prompt: share}
    max_new_tokens: int

    def __post_init__(self) -> None:
        positive(self, "pairs", "test_pairs", "batches", "max_new_tokens")
        fraction(self, "safety_share")
        not_negative(self, "open_pairs")
        _temperatures(self)
        rows = {"helpfulness", "safety", "open helpfulness", "open safety"}
        missing = rows - set(self.kinds)
        need(not missing, "kinds", f"{{key}} has no row {min(missing, default='')!r}")


@dataclass(frozen=True)
class RewardConfig:
    """The two reward models (section 3.2.2, appendix A.3.3)."""

    batch_size: int  # pairs
    epochs: int
    optim: OptimConfig
    margin: Literal["none", "small", "large"]
    margins: dict[str, tuple[float, float, float, float]]  # by grade, best grade first
    helpfulness_other_share: float  # of the helpfulness RM's data: safety, open source
    safety_helpfulness_share: float  # of the safety RM's data: helpfulness pairs
    safety_aux: float  # weight of the loss that tells safe from unsafe answers
    own_logprob: tuple[str, ...]  # ours: RMs that also weigh their own mean log-prob
    logprob_weight: float  # ours: where that weight starts
    lm_loss: float  # ours: weight of the next-token loss that those RMs keep
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "batch_size", "epochs")
        not_negative(self, "safety_aux", "lm_loss")
        fraction(self, "helpfulness_other_share", "safety_helpfulness_share")
        need(
            self.margin in self.margins,
            "margins",
            f"{{key}} has no row {self.margin!r}, which margin asks for",
        )
        need(
            set(self.own_logprob) <= set(GROUNDS),
            "own_logprob",
            f"{{key}} may name {' and '.join(GROUNDS)}",
        )


@dataclass(frozen=True)
class BestOfNConfig:
    """Reward of the best of N answers, by temperature (section 3.2.3, Figs. 7, 8)."""

    prompts: int
    samples: tuple[int, ...]  # the Ns on the curve
    temperatures: tuple[float, ...]
    top_p: float
    max_new_tokens: int

    def __post_init__(self) -> None:
        positive(self, "prompts", "max_new_tokens")
        _top_p(self)
        _temperatures(self)
        need(min(self.samples, default=0) > 0, "samples", "{key} must each be above 0")


@dataclass(frozen=True)
class RejectionConfig:
    """Rejection-sampling fine-tuning, V1 to V4 (section 3.2.3)."""

    rounds: int
    prompts: int  # per round, all different
    wordings: tuple[str, ...]  # of every round: the splits whose prompts it asks
    kinds: dict[str, float]  # kind of prompt: share
    samples: int  # K answers a prompt, of which the best is kept
    temperatures: tuple[float, ...]  # each round samples at the one that pays best …
    temperature_prompts: int  # … on so many of its prompts
    top_p: float
    max_new_tokens: int
    pool: Literal["all", "previous"]  # best answers of all rounds, or of this one
    texts: float  # ours: tokens of pre-training texts mixed in, per token of answers
    text_mix: dict[str, float]  # ours: source: share of those texts
    refresh_pairs: int  # fresh comparisons a round, for the reward models
    refresh_lr: float  # ours: the peak when they go on learning
    batch_size: int  # rows
    seq_len: int
    epochs: int
    optim: OptimConfig
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "rounds", "prompts", "samples", "temperature_prompts")
        positive(self, "max_new_tokens", "batch_size", "seq_len", "epochs")
        positive(self, "refresh_pairs", "refresh_lr")
        not_negative(self, "texts")
        shares(self, "kinds")
        shares(self, "text_mix")
        need(
            len(self.wordings) >= self.rounds,
            "wordings",
            f"{{key}} has {len(self.wordings)} entries for {self.rounds} rounds",
        )
        _top_p(self)
        _temperatures(self)


@dataclass(frozen=True)
class PPOConfig:
    """Proximal policy optimisation, V5 (section 3.2.3)."""

    batch_size: int  # prompts an iteration
    minibatch_size: int  # answers a gradient step
    epochs: int  # passes over the batch
    iterations: int
    kinds: dict[str, float]  # kind of prompt: share
    wordings: str  # the splits whose prompts it asks
    optim: OptimConfig
    clip: float  # of the probability ratio
    beta: float  # weight of the KL penalty
    safety_gate: float  # below this the safety reward decides
    gamma: float  # discount
    lam: float  # of generalised advantage estimation
    value_coef: float  # weight of the critic's loss
    value_lr: float  # ours: constant, of the value head
    gain_lr: float  # ours: the peak, of the last norm's gains: how sure of its words
    text_coef: float  # ours: weight of foretelling pre-training texts beside …
    text_rows: int  # ours: … so many rows a gradient step (`rejection.text_mix`)
    no_eos_penalty: float  # taken off the whitened score of an answer without an end
    average: float  # ours: of the old in the running mean of policies that is kept
    kl_budget: float  # nats an answer: no policy farther from the start is kept
    temperature: float
    max_new_tokens: int
    dev_prompts: int  # held-out prompts that early stopping looks at
    dev_every: int  # iterations
    patience: int  # looks without a gain before stopping
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "batch_size", "minibatch_size", "epochs", "iterations", "clip")
        positive(self, "temperature", "max_new_tokens", "dev_prompts", "dev_every")
        positive(self, "patience", "kl_budget", "value_lr", "gain_lr", "text_rows")
        not_negative(self, "beta", "value_coef", "text_coef", "no_eos_penalty")
        fraction(self, "safety_gate", "gamma", "lam")
        need(
            0 <= self.average < 1,
            "average",
            f"{{key}} is {self.average}; it must be at least 0 and below 1",
        )
        shares(self, "kinds")
        need(
            self.temperature == 1,
            "temperature",
            f"{{key}} is {self.temperature}, but PPO scores its answers at 1: sample "
            "them so as well",
        )
        need(
            self.batch_size % self.minibatch_size == 0,
            "minibatch_size",
            f"{{key}} {self.minibatch_size} does not divide batch_size "
            f"{self.batch_size}",
        )


@dataclass(frozen=True)
class GhostConfig:
    """Ghost Attention: keep an instruction over many turns (section 3.3)."""

    wordings: str  # the splits whose questions single turns and memory ask
    dialogues: int
    max_turns: int  # of a dialogue; sampled ones are planned half as long or longer
    samples: int  # answers a turn, of which the best is kept
    temperature: float
    beginnings: int  # of a dialogue, itself among them, whose last answer is learnt
    short_share: float  # instructions in their short form
    combine_share: float  # instructions that wish two things at once
    list_samples: int  # answers a question, from which figures and hobbies are listed
    # Ours, learnt before: without it there is nothing to sample from.
    single_turns: int  # demonstrations that obey in one turn, …
    strange_share: float  # … so many of them for a word that no list holds
    told_dialogues: int  # dialogues with the instruction in every turn
    plain_dialogues: int  # dialogues without an instruction
    drills: int  # lines of words to be said again: how copying is learnt
    drill_rows: int  # a step, while there is nothing else
    drill_optim: OptimConfig
    rm_pairs: int  # comparisons that show a reward model what obeying is
    teach_seq_len: int  # of the rows of what is short
    teach_optim: OptimConfig
    # Ours: what the model is held to, so that nothing else is lost.
    keep: float  # weight of staying close to the model as it was, when taught …
    keep_after: float  # … and when it can copy, on …
    kept: float  # … so many tokens a token of the lessons, in short rows, of …
    own_answers: int  # … so many of its own answers, without an instruction, …
    own_kinds: dict[str, float]  # … to these kinds of question, and …
    texts: int  # … so many tokens of pre-training texts
    text_mix: dict[str, float]  # source: share of those texts
    test_turns: tuple[int, ...]
    test_dialogues: int  # of each kind of instruction
    test_prompts: int  # of each kind, on which the price is measured
    batch_size: int  # rows a step, but for the drills
    seq_len: int
    epochs: int
    optim: OptimConfig
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        positive(self, "dialogues", "max_turns", "samples", "temperature", "beginnings")
        positive(self, "batch_size", "kept", "seq_len", "teach_seq_len", "epochs")
        positive(self, "drill_rows", "test_dialogues", "test_prompts")
        not_negative(self, "single_turns", "told_dialogues", "plain_dialogues")
        not_negative(self, "drills", "rm_pairs", "list_samples")
        not_negative(self, "keep", "keep_after", "own_answers", "texts")
        fraction(self, "short_share", "combine_share", "strange_share")
        shares(self, "own_kinds")
        shares(self, "text_mix")
        need(self.max_turns > 3, "max_turns", "{key} must be at least 4")
        steps = self.dialogues * self.beginnings * self.epochs / self.batch_size
        warmup_fits(self, steps, "Ghost Attention")


@dataclass(frozen=True)
class EvaluateConfig:
    """How all versions are measured, side by side (sections 3.4, 4 and 5.1).

    Where the village has fewer held-out prompts, all of them are asked.
    """

    prompts: int  # on helpfulness, evenly over the kinds
    safety_prompts: int  # that ask for harm
    borderline_prompts: int  # harmless ones that sound harmful
    answers: int  # ours: at least so many to the prompts of a kind together
    temperature: float
    top_p: float
    max_new_tokens: int
    diversity_prompts: int  # factual ones, and as many open ones (Fig. 21)
    diversity_samples: int  # answers a prompt for Self-BLEU
    diversity_temperatures: tuple[float, ...]

    def __post_init__(self) -> None:
        positive(self, "prompts", "safety_prompts", "borderline_prompts", "answers")
        positive(self, "temperature", "max_new_tokens", "diversity_prompts")
        need(self.diversity_samples > 1, "diversity_samples", "{key} must be above 1")
        _top_p(self)
        values = self.diversity_temperatures
        ok = len(values) > 0 and min(values) > 0
        need(ok, "diversity_temperatures", "{key} must be a list of numbers above 0")


def _top_p(section: object) -> None:
    value = section.top_p
    need(0 < value <= 1, "top_p", f"{{key}} is {value}; it must be above 0, at most 1")


def _temperatures(section: object) -> None:
    ok = len(section.temperatures) > 0 and min(section.temperatures) > 0
    need(ok, "temperatures", "{key} must be a list of numbers above 0")
