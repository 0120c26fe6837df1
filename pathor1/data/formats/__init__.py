"""The layouts of public sets, one module each: items in, `Record`s out. `pathor1.data.importing` does the rest."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathor1.data.formats.record import Format

# The name on the command line -> the module, which has a `FORMAT`.
NAMES = {
    "pathmmu": "pathmmu",
    "pathvqa": "pathvqa",
    "quilt-vqa": "quilt_vqa",
    "medxpertqa": "medxpertqa",
    "omnimedvqa": "omnimedvqa",
    "pathgen": "pathgen",
    "quilt-1m": "quilt_1m",
    "pathcap": "pathcap",
    "patho-r1-figures": "patho_r1_figures",
    "arch": "arch",
    "lc25000": "lc25000",
    "sicapv2": "sicapv2",
    "wsss4luad": "wsss4luad",
    "bmt": "bmt",
    "vlmevalkit": "vlmevalkit",
    "webdataset": "webdataset",
    "caption-table": "caption_table",
    "llama-factory": "llama_factory",
    "verl": "verl_rows",
}


def load(name: str) -> Format:
    """The format of that name, one of `NAMES`."""
    format_: Format = importlib.import_module(f"pathor1.data.formats.{NAMES[name]}").FORMAT
    return format_
