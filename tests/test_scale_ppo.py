"""PPO by `cria.scale`: a killed run ends where it would have ended."""

from dataclasses import replace

import pytest
import scale_cases
import torch

from cria import checkpoints
from cria.scale import keeping, ppo
from cria.scale.group import join
from cria.training import TrainingError


class Killed(Exception):
    pass


def run(out, group, score=None, **changes):
    policy, judge, *rest = scale_cases.ppo_run()
    rows = ppo.train_ppo(
        policy.config, policy.state_dict().__getitem__, score or judge, *rest,
        group=group, out=out, texts=scale_cases.PACKED, progress=False,
        **({"seed": 3} | changes),
    )  # fmt: skip
    return rows, checkpoints.load(out / ppo.BEST).state_dict()


@pytest.mark.parametrize("calls", [2, 4])
def test_killed_anywhere_it_goes_on(calls, tmp_path):
    judge, left = scale_cases.ppo_run()[1], [calls]

    def dying(prompts, answers):
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return judge(prompts, answers)

    with join() as group:
        rows, best = run(tmp_path / "whole", group)
        with pytest.raises(Killed):
            run(tmp_path / "killed", group, dying)
        kept = keeping.newest(tmp_path / "killed")
        again, same = run(tmp_path / "killed", group)
    assert kept is not None
    assert again == rows and len(rows) == 4
    assert all(torch.equal(same[name], w) for name, w in best.items())


def test_a_running_mean_is_refused_before_anything_is_done(tmp_path):
    policy, judge, vocabulary, ask, dev, config = scale_cases.ppo_run()
    with join() as group, pytest.raises(ValueError, match="set ppo.average to 0"):
        ppo.train_ppo(
            policy.config, policy.state_dict().__getitem__, judge, vocabulary, ask,
            dev, replace(config, average=0.9), group=group, out=tmp_path / "out",
            seed=3,
        )  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_another_run_s_checkpoint_is_refused(tmp_path):
    with join() as group:
        run(tmp_path / "run", group)
        with pytest.raises(TrainingError, match="belongs to another run .seed: 3"):
            run(tmp_path / "run", group, seed=4)
        [file, *_] = keeping.newest(tmp_path / "run").glob("*.safetensors")
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(TrainingError, match="cannot be read.*delete it"):
            run(tmp_path / "run", group)
