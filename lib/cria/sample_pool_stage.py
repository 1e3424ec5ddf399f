"""The stages `bon_pool` and `bon_pool_v4`: a pool of answers, sampled and scored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path

import torch

from cria import chat, reward, world
from cria.config import BestOfNConfig
from cria.evaluate import BENIGN, SAFETY
from cria.model import Llama
from cria.progress import Progress
from cria.reward import RewardModel, combine_rewards, score
from cria.sample_pool import SamplePool, save
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world import World
from cria.world.judge import judge
from cria.world.prompts import Prompt, mixture

__all__ = ["asked", "build", "own_logprob", "sample_pool"]


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
    """The pool of the model in the stage ``model``."""
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
