"""Human preferences (paper §3.2.1): which of two answers is better, and by how much.

    found = collect(village, [model_a, model_b], tokenizer, "safety", n, config)

Two variants of the chat model answer a prompt at different temperatures; an annotator
picks one answer and presses one of four grades. Helpfulness and safety are annotated
apart. `load` and `save` (`cria.preference_files`) read and write comparisons.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

from cria import world
from cria.chat import TAGS
from cria.config import PreferencesConfig
from cria.evaluate import Answer, answer
from cria.model import Llama
from cria.preference_files import Comparison, load, save
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world import World
from cria.world.annotators import compare, vote
from cria.world.judge import judge
from cria.world.prompts import Prompt, mixture

__all__ = ["BINS", "Collection", "Comparison", "answer_pairs", "build", "collect"]
__all__ += ["collect_open", "load", "safety_bin", "save", "weeks"]

BINS = (
    "chosen safe, other unsafe",
    "both safe",
    "both unsafe",
    "chosen unsafe, other safe",  # the paper leaves these out (§3.2.1)
)


@dataclass(frozen=True)
class Collection:
    """Comparisons, and how many pairs were dropped for which reason."""

    comparisons: list[Comparison]
    dropped: dict[str, int] = field(default_factory=dict)


def answer_pairs(
    models: Sequence[Llama],
    vocabulary: Tokenizer,
    asked: Sequence[Prompt],
    config: PreferencesConfig,
    seed: int,
) -> list[tuple[Answer, Answer]]:
    """Two answers to every prompt: from two models, at two temperatures.

    Which model comes first is drawn at random, and so are the two temperatures,
    different ones where `config.temperatures` has more than one. One model alone
    gives both answers.
    """
    rng = Random(f"answer pairs {seed}")
    plan: list[list[tuple[int, float]]] = []
    for _ in asked:
        pair = rng.sample(range(len(models)), 2) if len(models) > 1 else [0, 0]
        several = len(config.temperatures) > 1
        warmth = rng.sample(config.temperatures, 2) if several else (
            config.temperatures * 2
        )  # fmt: skip
        plan.append(list(zip(pair, warmth, strict=True)))
    answers: list[list[Answer | None]] = [[None, None] for _ in asked]
    for which, temperature in sorted({key for pair in plan for key in pair}):
        places = [
            (i, j)
            for i, pair in enumerate(plan)
            for j in (0, 1)
            if pair[j] == (which, temperature)
        ]
        sampled = answer(
            models[which],
            vocabulary,
            [asked[i] for i, _ in places],
            temperature=temperature,
            seed=rng.randrange(1_000_000),
            max_new_tokens=config.max_new_tokens,
            dtype=pick_dtype("auto"),
        )
        for (i, j), said in zip(places, sampled, strict=True):
            answers[i][j] = said
    return [(a, b) for a, b in answers]


def collect(
    village: World,
    models: Sequence[Llama],
    vocabulary: Tokenizer,
    ground: str,
    n: int,
    config: PreferencesConfig,
    *,
    split: str = "train",
    seed: int = 0,
) -> Collection:
    """``n`` answer pairs on ``ground``, compared by our annotators; some are dropped.

    Identical answers teach nothing (their loss is ln 2, without a gradient). On safety
    a pair whose chosen answer is unsafe and the other safe is excluded, as in the
    paper; on helpfulness it stays: complying is a help. An answer that holds a chat
    tag fits in no dialogue.
    """
    asked = mixture(village, split, n, dict(config.kinds[ground]), seed)
    rng = Random(f"annotators {ground} {split} {seed}")
    kept, dropped = [], Counter()
    pairs = answer_pairs(models, vocabulary, asked, config, seed)
    for a, b in _fit(pairs, dropped):
        best, grade = compare(
            village, a.prompt, a.text, b.text, ground, rng, (a.finished, b.finished)
        )
        pair = (b, a) if best else (a, b)
        safe = [not judge(village, x.prompt, x.text, x.finished).leaked for x in pair]
        made = _comparison(*pair, ground=ground, grade=grade, safe=tuple(safe))
        if ground == "safety" and safety_bin(made) == BINS[3]:
            dropped["chosen unsafe, other safe"] += 1
        else:
            kept.append(made)
    return Collection(kept, dict(dropped))


def collect_open(
    village: World,
    model: Llama,
    vocabulary: Tokenizer,
    ground: str,
    n: int,
    config: PreferencesConfig,
    *,
    split: str = "train",
    seed: int = 0,
) -> Collection:
    """``n`` answer pairs of another model, voted on by another crowd (§3.2.1, Table 6).

    They play the open-source comparisons: no grades, and the crowd only asks which
    answer is right (or, on safety, safe), so that equally right ones are dropped.
    """
    asked = mixture(village, split, n, dict(config.kinds[f"open {ground}"]), seed)
    rng = Random(f"crowd {ground} {split} {seed}")
    kept, dropped = [], Counter()
    pairs = answer_pairs([model], vocabulary, asked, config, seed)
    for a, b in _fit(pairs, dropped):
        best = vote(village, a.prompt, a.text, b.text, ground, rng)
        if best is None:
            dropped["equally right"] += 1
            continue
        pair = (b, a) if best else (a, b)
        kept.append(_comparison(*pair, ground=ground, source="open"))
    return Collection(kept, dict(dropped))


def safety_bin(comparison: Comparison) -> str | None:
    """One of `BINS`; None for a comparison without safety labels."""
    if comparison.safe is None:
        return None
    chosen, rejected = comparison.safe
    if chosen and rejected:
        return BINS[1]
    return BINS[0] if chosen else BINS[3] if rejected else BINS[2]


def weeks(comparisons: Sequence[Comparison], batches: int) -> list[Comparison]:
    """The comparisons as ``batches`` weekly deliveries of equal size, from 0."""
    n = len(comparisons)
    return [replace(c, batch=i * batches // n) for i, c in enumerate(comparisons)]


def counts(comparisons: Iterable[Comparison]) -> dict[str, dict[str, int]]:
    """How many comparisons by source, ground, kind of prompt, grade and safety bin."""
    seen: dict[str, Counter] = {
        name: Counter() for name in ("source", "ground", "kind", "grade", "bin")
    }
    for c in comparisons:
        seen["source"][c.source] += 1
        seen["ground"][c.ground] += 1
        seen["kind"][c.prompt.kind if c.prompt else "unknown"] += 1
        seen["grade"][c.grade or "none"] += 1
        if c.ground == "safety":
            seen["bin"][safety_bin(c) or "unknown"] += 1
    return {name: dict(counter) for name, counter in seen.items()}


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `preferences`: train.jsonl, open.jsonl and test.jsonl.

    Training prompts and test prompts share neither keys nor wordings.
    """
    village, c = world.load(), config.preferences
    vocabulary = upstream["sft_a"].tokenizer()
    ours = [upstream["sft_a"].model(), upstream["sft_b"].model()]
    metrics = {}

    def keep(name: str, found: Sequence[Collection], asked: int) -> None:
        comparisons = [x for part in found for x in part.comparisons]
        Random(f"order {name} {seed}").shuffle(comparisons)
        comparisons = weeks(comparisons, c.batches)
        save(comparisons, out / f"{name}.jsonl")
        dropped = sum((Counter(part.dropped) for part in found), Counter())
        metrics[name] = {
            "asked": asked,
            "kept": len(comparisons),
            "dropped": dict(dropped),
            **counts(comparisons),
        }
        print(f"preferences: {len(comparisons):,} {name} comparisons", flush=True)

    def share(n: int) -> dict[str, int]:
        safety = round(c.safety_share * n)
        return {"helpfulness": n - safety, "safety": safety}

    for name, split, n, offset in (
        ("train", "train", c.pairs, 0),
        ("test", "test", c.test_pairs, 1),
    ):
        found = [
            collect(
                village, ours, vocabulary, g, m, c, split=split, seed=2 * seed + offset
            )
            for g, m in share(n).items()
        ]
        keep(name, found, n)
    other = upstream["sft_other"].model()
    found = [
        collect_open(village, other, vocabulary, g, m, c, seed=2 * seed)
        for g, m in share(c.open_pairs).items()
    ]
    keep("open", found, c.open_pairs)
    return metrics


def _fit(
    pairs: Sequence[tuple[Answer, Answer]], dropped: Counter
) -> Iterator[tuple[Answer, Answer]]:
    """The pairs that can be compared; the others are counted by reason."""
    for a, b in pairs:
        if (a.text, a.finished) == (b.text, b.finished):
            dropped["identical"] += 1
        elif any(tag in x.text for tag in TAGS for x in (a, b)):
            dropped["tag"] += 1
        else:
            yield a, b


def _comparison(chosen: Answer, rejected: Answer, **about) -> Comparison:
    return Comparison(
        turns=chosen.prompt.turns,
        chosen=chosen.text,
        rejected=rejected.text,
        ended=(chosen.finished, rejected.finished),
        prompt=chosen.prompt,
        **about,
    )
