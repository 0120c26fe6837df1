"""docs/formats.md, made from the importers' own docstrings: `python -m pathor1.format_docs docs/formats.md`."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from pathor1 import files
from pathor1.data.formats import NAMES, load

_HEAD = """\
# Public sets

<!-- Made by `python -m pathor1.format_docs docs/formats.md` from pathor1/data/formats/. -->

Sets are read as they are downloaded and unpacked; nothing is downloaded for you, as many are behind a licence.

```
pathor1 data import pathmmu downloads/PathMMU --out data/pathmmu
pathor1 data check data/pathmmu/val data/pathmmu/test        # what is in it, and whether training would go wrong
```

`--out` then holds a folder of Parquet files for each split, `left_out.jsonl`, which names each item that could not be
used and why, and `import.json`, written last. An import that was interrupted goes on when the same command is given
again. A broken picture, a missing field, an answer that no option has: the item is left out, never guessed at.
"""


def render() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *map(_section, NAMES)])


def _section(name: str) -> str:
    doc = (import_module(f"pathor1.data.formats.{NAMES[name]}").__doc__ or "").strip()
    return f"## `{name}`\n\nSOURCE is {load(name).source}.\n\n```text\n{doc}\n```\n"


if __name__ == "__main__":
    files.write(Path(sys.argv[1]), render())
