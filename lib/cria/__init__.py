"""Cria: Llama 2-Chat, built at a size that trains on a laptop."""

import os

__version__ = "0.1.0"

# Torch's threads spin while they wait for each other, which is fine on an idle
# machine; with a browser open beside it a training step then takes ten times as long
# (`benchmarks/README.md`). Asleep they wait well in both cases. This is read once,
# when torch is loaded; `cria run`, `make lab` and `make test` pass it on to notebooks.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
