"""Reward models (paper §3.2.2): a chat model whose output is one number.

    r_θ(x, y) = head(state of the trunk at the last token of answer y to prompt x)

    loss = −log σ(r_θ(x, y_c) − r_θ(x, y_r) − m(grade))                        eq. (2)

Answers to one prompt share a row, each blind to the others (`cria.branching`), so
that the prompt is read once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cria import checkpoints
from cria.branching import before, branched, last_tokens
from cria.config import GRADES
from cria.model import Llama
from cria.tokenizer import Tokenizer
from cria.training import pick_dtype

__all__ = [
    "MARGINS",
    "RewardModel",
    "load",
    "margins",
    "ranking_loss",
    "safety_loss",
    "save",
]
__all__ += ["combine_rewards", "score"]

HEAD = "head.safetensors"
MARGINS = {  # Table 27, the clearest grade first
    "none": (0.0, 0.0, 0.0, 0.0),
    "small": (1.0, 2 / 3, 1 / 3, 0.0),
    "large": (3.0, 2.0, 1.0, 0.0),
}
ROW = 256  # tokens of a row in `score`: attention grows with the square of a row


class RewardModel(nn.Module):
    """A `Llama` and a scalar head read at the last real token of each answer.

    own_logprob=False is the paper's form. True is ours, for tiny models: the score
    also counts the network's own mean log-probability of the answer, with a learned
    weight that starts at ``logprob_weight``. A large trunk knows by itself how likely
    an answer is; at a million weights it has to be handed over.
    """

    def __init__(
        self,
        trunk: Llama,
        *,
        own_logprob: bool = False,
        logprob_weight: float = 2.0,
        seed: int = 0,
    ):
        super().__init__()
        self.trunk = trunk
        dim = trunk.config.dim
        self.head = nn.Linear(dim, 1)
        std = 1 / math.sqrt(dim + 1)  # scores start at about ±1: no saturated sigmoid
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=std, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.logprob_weight = (
            nn.Parameter(torch.tensor([logprob_weight])) if own_logprob else None
        )

    def forward(self, ids: Tensor, branches: Tensor) -> Tensor:
        """Scores of the K answers in each row: (B, T) and (B, T) → (B, K)."""
        return self.with_logprobs(ids, branches)[0]

    def with_logprobs(
        self, ids: Tensor, branches: Tensor, wanted: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Scores (B, K), and the mean log-probability a token of each answer (B, K).

        The second is None where neither the model nor the caller (``wanted``) needs it.
        """
        h = self.trunk(ids, hidden=True, branches=branches)  # (B, T, D)
        last = last_tokens(branches)  # (B, K)
        with torch.autocast(h.device.type, enabled=False):
            states = h.gather(1, last[..., None].expand(-1, -1, h.shape[2]))
            scores = self.head(states.float())[..., 0]
        if not wanted and self.logprob_weight is None:
            return scores, None
        logprobs = self.mean_logprobs(h, ids, branches)
        if self.logprob_weight is not None:
            scores = scores + self.logprob_weight * logprobs
        return scores, logprobs

    def mean_logprobs(self, h: Tensor, ids: Tensor, branches: Tensor) -> Tensor:
        """log p(answer | prompt) ÷ its tokens under the trunk's own LM head: (B, K)."""
        row, column = (branches > 0).nonzero(as_tuple=True)
        logits = self.trunk.output(h[row, before(branches)[row, column]]).float()
        logprob = -F.cross_entropy(logits, ids[row, column], reduction="none")
        K = int(branches.max())
        answer = row * K + branches[row, column] - 1
        sums = logprob.new_zeros(len(ids) * K).index_add(0, answer, logprob)
        lengths = logprob.new_zeros(len(ids) * K).index_add(
            0, answer, logprob.new_ones(1).expand_as(logprob)
        )
        return (sums / lengths.clamp(min=1)).view(len(ids), K)


def margins(
    grades: Sequence[str | None], row: Sequence[float] | str = "small"
) -> Tensor:
    """m(grade) of each comparison, (B,) float.

    row: "none", "small" or "large" (Table 27: `MARGINS`), or a number a grade, the
    clearest first. A comparison without a grade gets 0. Raises ValueError for an
    unknown grade or row.
    """
    if isinstance(row, str):
        if row not in MARGINS:
            raise ValueError(f"There is no row {row!r} of margins; {tuple(MARGINS)}.")
        row = MARGINS[row]
    if unknown := set(grades) - {*GRADES, None}:
        raise ValueError(f"There is no grade {min(unknown)!r}; there are {GRADES}.")
    if len(row) != len(GRADES):
        raise ValueError(f"A row of margins has {len(GRADES)} numbers, not {len(row)}.")
    table = dict(zip(GRADES, row, strict=True)) | {None: 0.0}
    return torch.tensor([float(table[grade]) for grade in grades])


def ranking_loss(
    r_chosen: Tensor, r_rejected: Tensor, margin: Tensor
) -> tuple[Tensor, dict[str, float]]:
    """−log σ(r_c − r_r − m), the mean over pairs (eq. 2); all three are (B,).

    metrics: accuracy (share of pairs with r_c > r_r; a tie counts half), and the mean
    difference r_c − r_r. Shapes that would broadcast are a ValueError.
    """
    shapes = {tuple(t.shape) for t in (r_chosen, r_rejected, margin)}
    if len(shapes) > 1 or r_chosen.ndim != 1:
        raise ValueError(
            "ranking_loss needs three tensors of one shape (B,); got "
            f"{tuple(r_chosen.shape)}, {tuple(r_rejected.shape)} and "
            f"{tuple(margin.shape)}."
        )
    gap = r_chosen - r_rejected
    loss = -F.logsigmoid(gap - margin).mean()
    right = (gap > 0).float() + 0.5 * (gap == 0).float()
    return loss, {"accuracy": float(right.mean()), "gap": float(gap.detach().mean())}


def safety_loss(scores: Tensor, safe: Tensor) -> Tensor:
    """Ours: balanced cross entropy, with σ(score) the probability of a safe answer.

    scores (…) float; safe (…): 1 safe, 0 unsafe, −1 not labelled (left out). The mean
    over the safe answers and the mean over the unsafe ones weigh the same: few answers
    are unsafe, and a plain mean would learn to call everything safe. The paper uses an
    auxiliary safety loss (§3.2.2) and does not print it. This one gives the
    score a zero point as well, which the gate R_s < 0.15 of PPO needs.
    """
    means = [
        -F.logsigmoid(sign * scores[safe == label]).mean()
        for label, sign in ((1, 1.0), (0, -1.0))
        if (safe == label).any()
    ]
    return sum(means) / len(means) if means else scores.sum() * 0.0


def combine_rewards(
    r_safety: Tensor, r_helpful: Tensor, is_safety: Tensor, gate: float = 0.15
) -> Tensor:
    """R_c: the safety score where the prompt is one of safety, or where the answer is
    not safe, σ(r_safety) < gate; the helpfulness score elsewhere (§3.2.3). All (…).

    Raw scores in, raw scores out: LOGIT(σ(r)) is r, and nothing saturates.
    """
    unsafe = r_safety < math.log(gate / (1 - gate))  # strictly
    return torch.where(is_safety | unsafe, r_safety, r_helpful)


@torch.inference_mode()
def score(
    model: RewardModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[Sequence[int]]],
    *,
    batch_tokens: int = 8192,
    dtype: str = "auto",
) -> list[list[float]]:
    """The score of every answer to every prompt, as ids; EOS is part of an answer.

    Like lengths are scored together, and equal answers to a prompt only once. Answers
    that do not fit one row take several.
    """
    width = min(ROW, model.trunk.config.max_seq_len)
    owner, rows = [], []
    for i, (prompt, several) in enumerate(zip(prompts, answers, strict=True)):
        for part in _parts(dict.fromkeys(map(tuple, several)), width - len(prompt)):
            owner.append(i)
            rows.append((prompt, part))
    size = [len(prompt) + sum(map(len, part)) for prompt, part in rows]
    order = sorted(range(len(rows)), key=size.__getitem__)
    found: list[dict] = [{} for _ in prompts]
    was_training = model.training
    model.eval()
    start = 0
    while start < len(order):
        end = start + 1
        while end < len(order) and size[order[end]] * (end + 1 - start) <= batch_tokens:
            end += 1
        part = order[start:end]
        batch = branched([rows[i] for i in part])
        with torch.autocast("cpu", torch.bfloat16, pick_dtype(dtype) is torch.bfloat16):
            scores = model(batch.ids, batch.branches)
        for i, line in zip(part, scores.tolist(), strict=True):
            found[owner[i]].update(zip(rows[i][1], line, strict=False))
        start = end
    model.train(was_training)
    return [[found[i][tuple(a)] for a in several] for i, several in enumerate(answers)]


def _parts(answers: Iterable[Sequence[int]], room: int) -> list[list[Sequence[int]]]:
    """The answers in order, cut where the next one would not fit ``room`` tokens."""
    parts, left = [], -1
    for answer in answers:
        left -= len(answer)
        if left < 0:  # also the first; one that is too long stands alone
            parts.append([])
            left = room - len(answer)
        parts[-1].append(answer)
    return parts


def save(
    model: RewardModel, path: str | Path, vocabulary: Tokenizer | None = None
) -> None:
    """Write the trunk as `checkpoints.save` does, and what is beside it in a file."""
    path = Path(path)
    (path / HEAD).unlink(missing_ok=True)  # of a model that is replaced
    checkpoints.save(model.trunk, path, vocabulary)
    unfinished = path / f".{HEAD}.unfinished"
    save_file(_beside(model), unfinished)
    unfinished.replace(path / HEAD)


def load(path: str | Path) -> RewardModel:
    """The reward model that `save` wrote (or that stands in a stage's folder).

    Raises FileNotFoundError if there is none, ValueError if its head is damaged or
    another model's.
    """
    folder = Path(path)
    folder = folder if (folder / HEAD).exists() else folder / "model"
    if not (folder / HEAD).is_file():
        raise FileNotFoundError(f"{path} holds no reward model: no {HEAD} in it.")
    try:
        beside = load_file(folder / HEAD)
    except SafetensorError as error:
        raise ValueError(f"{folder / HEAD} is damaged: {error}") from None
    model = RewardModel(
        checkpoints.load(folder), own_logprob="logprob_weight" in beside
    )
    shapes = [
        {name: tuple(weight.shape) for name, weight in weights.items()}
        for weights in (beside, _beside(model))
    ]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{folder / HEAD} is no head of the model beside it: it holds {shapes[0]}, "
            f"but the model needs {shapes[1]}."
        )
    model.load_state_dict(beside, strict=False)
    return model.eval()


def _beside(model: RewardModel) -> dict[str, Tensor]:
    """What a reward model learns besides its trunk."""
    return {
        name: weight.detach().contiguous()
        for name, weight in model.named_parameters()
        if not name.startswith("trunk.")
    }
