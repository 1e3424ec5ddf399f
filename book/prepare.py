"""Lay the executed notebooks out for Sphinx: build/notebooks → build/book/source."""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

INDEX = """\
# Cria

Llama 2-Chat, raised from nothing on a laptop. These pages are the course's
notebooks, as they ran on this computer.

```{{toctree}}
:maxdepth: 1
{names}
```
"""


def main(executed: Path, source: Path) -> int:
    notebooks = sorted(executed.glob("[0-9]*.ipynb"))
    if not notebooks:
        print("There is nothing to put in a book yet: run `make course` first.")
        return 1
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for notebook in notebooks:
        shutil.copy(notebook, source)
    names = "\n".join(notebook.stem for notebook in notebooks)
    (source / "index.md").write_text(INDEX.format(names=names), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(ROOT / "build/notebooks", ROOT / "build/book/source"))
