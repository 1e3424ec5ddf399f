"""All versions on the same held-out prompts (paper §3.4, §4.2 and §5.1): two stages.

`evaluation`: every version answers every prompt several times, and next to each answer
stand the judge's scores and those of the newest reward models. Who wins, what became of
the bad tail, where the red team gets through and whether the reward models agree with
the judge are all read from this one table.

`diversity`: answers to factual and to open prompts at several temperatures.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from cria import chat, checkpoints, reward, side_by_side, world
from cria.config import EvaluateConfig
from cria.diversity import self_bleu, words
from cria.evaluate import BENIGN, SAFETY, Answer, scores
from cria.judged import COLUMNS
from cria.model import Llama
from cria.provenance import write_json
from cria.sampling import generate
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype
from cria.world import World
from cria.world.prompts import Prompt, mixture, prompts

__all__ = ["MIXED", "SORTS", "VERSIONS", "asked", "by_prompt", "load"]
__all__ += ["build", "build_diversity", "diversity_of", "gold_of", "view"]

MIXED = "SFT-Mix"
VERSIONS = {  # as the paper calls them (Figs. 11 and 20), and our stages
    MIXED: "sft_other",
    "SFT": "sft_a",
    "V1": "v1",
    "V2": "v2",
    "V3": "v3",
    "V4": "v4",
    "V5": "ppo_v5",
}
DIVERSE = ("SFT", "V2", "V5")  # before, on the way, and at the end
SORTS = {  # which prompts have one right answer, and which have many (Fig. 21)
    "factual": ("fact", "sum", "followup"),
    "open": ("tell", "three", "rhyme"),
}
ANSWERS = "answers.json"
DTYPE = "auto"


def asked(village: World, c: EvaluateConfig, seed: int = 0) -> dict[str, list[Prompt]]:
    """The held-out prompts by kind: as many as the config wants, or all there are."""
    benign = [kind for kind in BENIGN if kind != "borderline"]
    wanted = dict.fromkeys(benign, math.ceil(c.prompts / len(benign)))
    wanted |= {"borderline": c.borderline_prompts, SAFETY: c.safety_prompts}
    return {
        kind: prompts(village, kind, "test", seed=seed)[:n]
        for kind, n in wanted.items()
    }


def view(
    folder: Path,
    judges: tuple[Path, Path],
    c: EvaluateConfig,
    seed: int,
) -> dict[str, list]:
    """What the model in ``folder`` answers, as columns with one entry an answer.

    The prompt's id, kind, question, risk and vector; the answer and its length in
    tokens; of the judge, helpfulness, safety and the other `judged.COLUMNS`;
    r_helpful and r_safety, the raw scores of the reward models in ``judges``.
    Every kind has `c.answers` answers at least, however few prompts it has. The same
    seed asks every model alike.
    """
    model, vocabulary = checkpoints.load(folder), Tokenizer(folder / "tokenizer.model")
    village, rms = world.load(), [reward.load(path) for path in judges]
    parts = []
    for several in asked(village, c).values():
        n = math.ceil(c.answers / len(several))
        answers, ids = _answers(model, vocabulary, several, c, c.temperature, n, seed)
        table = scores(village, answers)
        table["id"] = [a.prompt.id for a in answers]
        table["risk"] = [a.prompt.risk for a in answers]
        table["vector"] = [a.prompt.vector for a in answers]
        table["length"] = [len(x) for x in ids]
        starts = [chat.prompt_ids(vocabulary, p.messages) for p in several]
        grouped = [ids[i * n : (i + 1) * n] for i in range(len(several))]
        for name, rm in zip(("r_helpful", "r_safety"), rms, strict=True):
            given = reward.score(rm, starts, grouped, dtype=DTYPE)
            table[name] = [value for row in given for value in row]
        parts.append(table)
    return pd.concat(parts, ignore_index=True).round(5).to_dict("list")


def diversity_of(
    folder: Path, c: EvaluateConfig, temperature: float, seed: int
) -> dict[str, list]:
    """Self-BLEU of K answers of the model in ``folder``, prompt by prompt, as columns:
    sort ("factual" or "open"), kind, prompt, self_bleu, different (answers), and the
    judge's mean content."""
    model, vocabulary = checkpoints.load(folder), Tokenizer(folder / "tokenizer.model")
    village, K, rows = world.load(), c.diversity_samples, []
    for sort, several in _sorts(village, c.diversity_prompts).items():
        answers, _ = _answers(model, vocabulary, several, c, temperature, K, seed)
        content = scores(village, answers)["content"]
        for i, prompt in enumerate(several):
            texts = [a.text for a in answers[i * K : (i + 1) * K]]
            rows.append(
                {
                    "sort": sort,
                    "kind": prompt.kind,
                    "prompt": prompt.question,
                    "self_bleu": self_bleu([words(text) for text in texts]),
                    "different": len(set(texts)),
                    "content": content[i * K : (i + 1) * K].mean(),
                }
            )
    return pd.DataFrame(rows).round(5).to_dict("list")


def build(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `evaluation`: answers.json, and in the metrics each version's means."""
    judges = tuple(
        upstream["v4"].path / f"rm_{ground}" for ground in ("helpfulness", "safety")
    )
    jobs = {
        version: {
            "folder": upstream[stage].file("model.safetensors").parent,
            "judges": judges,
            "c": config.evaluate,
            "seed": seed,
        }
        for version, stage in VERSIONS.items()
    }
    found = side_by_side.run(view, jobs)
    write_json(out / ANSWERS, found)
    return {
        version: {
            "answers": len(columns["answer"]),
            "length": sum(columns["length"]) / len(columns["length"]),
        }
        for version, columns in found.items()
    }


def build_diversity(config, seed: int, upstream: Mapping, out: Path) -> dict:
    """Stage `diversity`: {version: {temperature: `diversity_of`}}."""
    c = config.evaluate
    jobs = {
        f"{version} at {temperature:g}": {
            "folder": upstream[VERSIONS[version]].file("model.safetensors").parent,
            "c": c,
            "temperature": temperature,
            "seed": seed,
        }
        for version in DIVERSE
        for temperature in c.diversity_temperatures
    }
    found = side_by_side.run(diversity_of, jobs)
    return {
        version: {
            f"{t:g}": found[f"{version} at {t:g}"] for t in c.diversity_temperatures
        }
        for version in DIVERSE
    }


def load(folder: str | Path) -> dict[str, pd.DataFrame]:
    """The versions' answers that the stage `evaluation` wrote, one row an answer.

    Raises FileNotFoundError if there are none, ValueError if they are damaged.
    """
    path = Path(folder) / ANSWERS
    if not path.is_file():
        raise FileNotFoundError(f"{Path(folder).name} holds no {ANSWERS}.")
    try:
        columns = json.loads(path.read_text("utf-8"))
        return {version: pd.DataFrame(part) for version, part in columns.items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path.name} is damaged: {error}") from None


def gold_of(table: pd.DataFrame) -> pd.Series:
    """The judge's score of what was asked for: safety on harm, else helpfulness."""
    return table["safety"].where(table["kind"] == SAFETY, table["helpfulness"])


def by_prompt(table: pd.DataFrame) -> pd.DataFrame:
    """One row a prompt, as `judged.judged` gives it: for `judged.gain` and `gold`."""
    names = [*COLUMNS, "length", "r_helpful", "r_safety"]
    keys = ["kind", "id", "prompt"]
    means = table[[*keys, *names]].astype(dict.fromkeys(names, float))
    return means.groupby(keys, sort=False).mean().reset_index()


def _answers(
    model: Llama,
    vocabulary: Tokenizer,
    several: Sequence[Prompt],
    c: EvaluateConfig,
    temperature: float,
    n: int,
    seed: int,
) -> tuple[list[Answer], list[list[int]]]:
    """n answers to each prompt, in order, and the same as ids, EOS included."""
    drawn = generate(
        model,
        [chat.prompt_ids(vocabulary, p.messages) for p in several],
        max_new_tokens=c.max_new_tokens,
        eos_id=vocabulary.eos_id,
        temperature=temperature,
        top_p=c.top_p,
        n=n,
        seeds=seed,
        dtype=pick_dtype(DTYPE),
    )
    ids = drawn.lists()
    return [
        Answer(several[row // n], vocabulary.decode(x).strip(), bool(end))
        for row, (x, end) in enumerate(zip(ids, drawn.finished, strict=True))
    ], ids


def _sorts(village: World, n: int) -> dict[str, list[Prompt]]:
    """So many held-out prompts of each sort, evenly over its kinds; or all."""
    found = {}
    for sort, kinds in SORTS.items():
        there = sum(len(prompts(village, kind, "test")) for kind in kinds)
        shares = dict.fromkeys(kinds, 1 / len(kinds))
        found[sort] = mixture(village, "test", min(n, there), shares, unique=True)
    return found
