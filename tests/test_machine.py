"""The settings reach the process, and torch gives the same numbers with and without."""

import os
import subprocess
import sys

STEP = """
import sys
if "cria" in sys.argv:
    import cria
import os, torch
torch.manual_seed(0)
torch.set_num_threads(1)
x = torch.randn(256, 256, requires_grad=True)
((x @ x).softmax(-1).square().sum()).backward()
print(os.environ.get("GOMP_SPINCOUNT"), x.grad.double().sum().item())
"""


def run(*words: str, **environment: str) -> list[str]:
    env = {k: v for k, v in os.environ.items() if k != "GOMP_SPINCOUNT"} | environment
    out = subprocess.check_output([sys.executable, "-c", STEP, *words], env=env)
    return out.decode().split()


def test_the_settings_change_the_waiting_and_not_the_numbers():
    plain, settled = run(), run("cria")
    assert (plain[0], settled[0]) == ("None", "1000")
    assert plain[1] == settled[1]


def test_a_user_s_own_setting_stays():
    assert run("cria", GOMP_SPINCOUNT="7")[0] == "7"
