"""Full size: what the stages would take on real GPUs, and how to run them (12).

`plan` has the plan and `table` its page; the formulas are in `memory` and `compute`;
`workload` reads a config, `machines` and `paper` hold numbers that others printed.

`launch` is what torchrun starts: `jobs` say what is trained, `sharding` deals a network
out, `loop` and `ppo` train it, `keeping` has the checkpoints, `group` the processes.
"""

from cria.scale.machines import GPUS, find
from cria.scale.plan import Plan, PlanError, plan
from cria.scale.report import to_dict

__all__ = ["GPUS", "Plan", "PlanError", "find", "plan", "to_dict"]
