"""A pool of answers, sampled and scored once (paper §3.2.3): what notebook 07 draws on.

    pool = load(stages.get("bon_pool").path)
    t = pool.index(1.0)                    # the row of temperature 1
    expected_best(pool.combined[t], pool.gold_helpfulness[t], 8)

P held-out prompts, T temperatures, M answers each: every curve over N, for any reward,
at any temperature, comes from these, and no answer is sampled or scored twice. The
reward models' scores stand beside the judge's, whom no model has seen.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cria import chat, reward, world
from cria.config import BestOfNConfig
from cria.evaluate import BENIGN, SAFETY
from cria.model import Llama
from cria.progress import Progress
from cria.provenance import write_json
from cria.reward import RewardModel, combine_rewards, score
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world import World
from cria.world.judge import judge
from cria.world.prompts import Prompt, mixture

__all__ = ["SamplePool", "asked", "build", "load", "own_logprob", "sample_pool", "save"]

TENSORS = "pool.safetensors"
WORDS = "pool.json"


@dataclass(frozen=True)
class SamplePool:
    """P prompts, T rising temperatures, M samples each; every tensor is (T, P, M).

    texts[p]: the different answers to prompt p.  answer: which of them a sample is.
    helpful, safety, plain: scores of the reward models, raw.  combined: R_c, as PPO
    will use it.  logprob: mean log p a token of the answer under the model that
    gave it, at temperature 1.  gold_helpfulness, gold_safety: the judge's.
    finished: did it end by itself (EOS)?  length: in tokens, EOS included.
    """

    prompts: tuple[Prompt, ...]
    temperatures: tuple[float, ...]
    texts: tuple[tuple[str, ...], ...]
    answer: Tensor
    helpful: Tensor
    safety: Tensor
    plain: Tensor
    combined: Tensor
    logprob: Tensor
    gold_helpfulness: Tensor
    gold_safety: Tensor
    finished: Tensor
    length: Tensor

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of its prompts, each once."""
        return tuple(dict.fromkeys(prompt.kind for prompt in self.prompts))

    @property
    def gold(self) -> Tensor:
        """The judge's score of what was asked for: safety on harm, else helpfulness."""
        return torch.where(self.harm[:, None], self.gold_safety, self.gold_helpfulness)

    @property
    def harm(self) -> Tensor:
        """Which prompts ask for harm: (P,) bool."""
        return torch.tensor([prompt.kind == SAFETY for prompt in self.prompts])

    def index(self, temperature: float) -> int:
        """The row of a temperature. Raises ValueError for one that was not sampled."""
        if temperature not in self.temperatures:
            known = ", ".join(f"{t:g}" for t in self.temperatures)
            raise ValueError(
                f"nothing was sampled at temperature {temperature:g}, only at {known}."
            )
        return self.temperatures.index(temperature)

    def of(self, kinds: Collection[str]) -> SamplePool:
        """The prompts of these kinds alone. Raises ValueError if there are none."""
        if isinstance(kinds, str):
            kinds = (kinds,)
        keep = [p for p, prompt in enumerate(self.prompts) if prompt.kind in kinds]
        if not keep:
            raise ValueError(
                f"the pool has no prompt of {', '.join(kinds)}, only of "
                f"{', '.join(self.kinds)}."
            )
        return replace(
            self,
            prompts=tuple(self.prompts[p] for p in keep),
            texts=tuple(self.texts[p] for p in keep),
            **{name: getattr(self, name)[:, keep] for name in _TENSORS},
        )

    def text(self, t: int, p: int, m: int) -> str:
        """Sample m at temperature ``temperatures[t]`` of prompt p."""
        return self.texts[p][int(self.answer[t, p, m])]


_WORDS = ("prompts", "temperatures", "texts")
_TENSORS = tuple(f.name for f in fields(SamplePool) if f.name not in _WORDS)


def asked(village: World, n: int, seed: int) -> list[Prompt]:
    """``n`` different test prompts of every judged kind, harm included, in equal parts.

    A kind with too few prompts gives all that it has, the others fill up.
    """
    shares = dict.fromkeys((SAFETY, *BENIGN), 1.0)  # a tie goes to the first
    return mixture(village, "test", n, shares, seed, unique=True)


def sample_pool(
    model: Llama,
    vocabulary: Tokenizer,
    judges: Mapping[str, RewardModel],
    village: World,
    prompts: Sequence[Prompt],
    config: BestOfNConfig,
    *,
    gate: float,
    seed: int = 0,
    label: str = "pool",
) -> SamplePool:
    """Sample max(`config.samples`) answers a prompt and temperature, and score them.

    judges: reward models by name: helpful, safety, plain.  gate: see
    `reward.combine_rewards`. Equal answers to a prompt are scored once, also where
    they came at several temperatures. All temperatures use the same random numbers.
    """
    temperatures = tuple(sorted(config.temperatures))
    starts = [chat.prompt_ids(vocabulary, p.messages) for p in prompts]
    models = {**judges, "logprob": own_logprob(model)}
    with Progress(label, len(temperatures) + len(models) + 1) as progress:
        say = _counter(progress)
        different, answer = _samples(
            model, vocabulary, starts, temperatures, config, seed, say
        )
        n = sum(map(len, different))
        columns: dict[str, list[list]] = {}  # name → prompt → different answer
        for name, scorer in models.items():
            columns[name] = score(scorer, starts, different)
            say(f"{n:,} different answers scored: {name}")
        texts, judged = _judged(village, vocabulary, prompts, different)
        say("judged")
    spread = {
        name: torch.stack(
            [torch.tensor(row)[answer[:, p]] for p, row in enumerate(column)], 1
        )
        for name, column in (columns | judged).items()
    }
    harm = torch.tensor([prompt.kind == SAFETY for prompt in prompts])
    spread["combined"] = combine_rewards(
        spread["safety"], spread["helpful"], harm[:, None], gate
    )
    return SamplePool(tuple(prompts), temperatures, texts, answer, **spread)


def _samples(model, vocabulary, starts, temperatures, config, seed, say):
    """The different answers to each prompt, as ids, and which of them a sample is."""
    M = max(config.samples)
    found: list[dict[tuple[int, ...], int]] = [{} for _ in starts]  # ids → number
    answer = torch.empty(len(temperatures), len(starts), M, dtype=torch.long)
    for t, temperature in enumerate(temperatures):
        samples = generate(
            model,
            starts,
            max_new_tokens=config.max_new_tokens,
            eos_id=vocabulary.eos_id,
            temperature=temperature,
            top_p=config.top_p,
            n=M,
            seeds=seed,
            dtype=pick_dtype("auto"),
        ).lists()
        for row, ids in enumerate(samples):
            known = found[row // M]
            answer[t, row // M, row % M] = known.setdefault(tuple(ids), len(known))
        say(f"{len(samples):,} answers at temperature {temperature:g}")
    return [list(known) for known in found], answer


def _judged(village, vocabulary, prompts, different):
    """The texts of the answers, and what can be said of them without a reward model."""
    texts, columns = [], {
        name: [] for name in ("gold_helpfulness", "gold_safety", "finished", "length")
    }  # fmt: skip
    for prompt, several in zip(prompts, different, strict=True):
        ended = [ids[-1] == vocabulary.eos_id for ids in several]
        texts.append(tuple(vocabulary.decode(list(ids)).strip() for ids in several))
        verdicts = [
            judge(village, prompt, text, end)
            for text, end in zip(texts[-1], ended, strict=True)
        ]
        columns["gold_helpfulness"].append([v.helpfulness for v in verdicts])
        columns["gold_safety"].append([v.safety for v in verdicts])
        columns["finished"].append(ended)
        columns["length"].append([len(ids) for ids in several])
    return tuple(texts), columns


def _counter(progress: Progress) -> Callable[[str], None]:
    """`progress.step`, which counts the steps itself."""
    steps = count(1)
    return lambda words: progress.step(next(steps), words)


def own_logprob(model: Llama) -> RewardModel:
    """A judge without preferences: its score is the model's mean log p a token."""
    control = RewardModel(model, own_logprob=True, logprob_weight=1.0)
    torch.nn.init.zeros_(control.head.weight)
    return control.train(model.training)  # the trunk is the model itself


def build(config, seed: int, upstream: Mapping, out: Path, model: str) -> dict:
    """Stage `bon_pool`: the pool of the model in the stage ``model``."""
    village, speaker = world.load(), upstream[model]
    pool = sample_pool(
        speaker.model(),
        speaker.tokenizer(),
        {
            "helpful": reward.load(upstream["rm_helpful"].path),
            "safety": reward.load(upstream["rm_safety"].path),
            "plain": reward.load(upstream["rm_plain"].path),
        },
        village,
        asked(village, config.best_of_n.prompts, seed),
        config.best_of_n,
        gate=config.ppo.safety_gate,
        seed=seed,
        label=f"pool of {model}",
    )
    save(pool, out)
    return {
        "prompts": len(pool.prompts),
        "temperatures": len(pool.temperatures),
        "samples": pool.answer.numel(),
        "different": sum(map(len, pool.texts)),
    }


def save(pool: SamplePool, folder: str | Path) -> None:
    """Write the pool into a folder: whole, or not there at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / WORDS).unlink(missing_ok=True)  # without it there is no pool
    unfinished = folder / f".{TENSORS}.unfinished"
    save_file({name: getattr(pool, name).contiguous() for name in _TENSORS}, unfinished)
    os.replace(unfinished, folder / TENSORS)
    write_json(
        folder / WORDS,
        {
            "temperatures": list(pool.temperatures),
            "prompts": [prompt.to_dict() for prompt in pool.prompts],
            "texts": pool.texts,
        },
    )


def load(folder: str | Path) -> SamplePool:
    """The pool that `save` wrote (or that a stage's folder holds).

    Raises FileNotFoundError if there is none, ValueError if it is damaged.
    """
    folder = Path(folder)
    if not ((folder / WORDS).is_file() and (folder / TENSORS).is_file()):
        raise FileNotFoundError(f"{folder.name} holds no pool of samples.")
    try:
        words = json.loads((folder / WORDS).read_text("utf-8"))
        tensors = load_file(folder / TENSORS)
        pool = SamplePool(
            tuple(Prompt.from_dict(row) for row in words["prompts"]),
            tuple(words["temperatures"]),
            tuple(map(tuple, words["texts"])),
            **tensors,
        )
        shape = (len(pool.temperatures), len(pool.prompts))
        known = torch.tensor([len(texts) for texts in pool.texts])
        if any(x.ndim != 3 or x.shape[:2] != shape for x in tensors.values()):
            raise ValueError(f"its tensors do not have the shape {shape} in front")
        if len(known) != shape[1] or (pool.answer >= known[:, None]).any():
            raise ValueError("its answers have no text")
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the pool in {folder.name} is damaged: {error}") from None
    return pool
