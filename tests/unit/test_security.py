"""What no source of ours may do: run what lies in a file of data, or trust a model's code unasked."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = [path for folder in ("pathor1", "rewards", "ray_jobs") for path in sorted((ROOT / folder).rglob("*.py"))]

# They make whatever objects their input names, and by that run code.
MODULES = ("pickle.", "cPickle.", "dill.", "cloudpickle.", "joblib.", "marshal.", "shelve.")
FUNCTIONS = ("pandas.read_pickle", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec")
ALLOWED = {
    ("pathor1/data/importing.py", "pickle.dumps"),
    ("pathor1/data/importing.py", "pickle.loads"),  # what the line above made, on its way from one Ray task to another
    ("pathor1/data/formats/pathvqa.py", "pickle.Unpickler"),  # its subclass finds no class and no function
    ("pathor1/data/formats/pathvqa.py", "pickle.UnpicklingError"),
    ("pathor1/clip/models.py", "pickle.UnpicklingError"),  # what torch raises for weights that are none
    ("pathor1/clip/checkpoint.py", "pickle.UnpicklingError"),
    ("pathor1/curation/classifier.py", "pickle.UnpicklingError"),
    ("pathor1/fork_server.py", "exec"),  # `python -c`, as whoever starts the process says it
    ("pathor1/rl/reward_child.py", "exec"),  # the reward function that the recipe names, which is the user's own code
}


def full_names(tree: ast.AST) -> dict[int, str]:
    """id of a node -> the dotted name it uses, in full: after `from torch import load as l`, `l` is torch.load."""
    imported = {"eval": "eval", "exec": "exec"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                first = name.name.split(".")[0]
                imported[name.asname or first] = name.name if name.asname else first
        elif isinstance(node, ast.ImportFrom):
            imported.update({name.asname or name.name: f"{node.module}.{name.name}" for name in node.names})
    found: dict[int, str] = {}
    for node in ast.walk(tree):
        parts: list[str] = []
        inner = node
        while isinstance(inner, ast.Attribute):
            parts.insert(0, inner.attr)
            inner = inner.value
        if isinstance(inner, ast.Name) and inner.id in imported:
            found[id(node)] = ".".join([imported[inner.id], *parts])
    return found


def forbidden(source: str) -> list[str]:
    """What a source does of it."""
    tree = ast.parse(source)
    full = full_names(tree)
    found = [name for name in full.values() if name.startswith(MODULES) or name in FUNCTIONS]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if full.get(id(node.func)) == "torch.load" and given.get("weights_only") != "True":
                found.append("torch.load")
            found += [name for name in ("allow_pickle", "trust_remote_code") if given.get(name, "False") != "False"]
    return sorted(set(found))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle\npickle.load(file)", ["pickle.load"]),
        ("def f():\n    from pickle import loads as l\n    return l(b'')", ["pickle.loads"]),
        ("import torch as t\nt.load(path)", ["torch.load"]),
        ("from torch import load\nload(path, weights_only=False)", ["torch.load"]),
        ("import torch\ntorch.load(path, weights_only=True)", []),
        ("import numpy as np\nnp.load(path, allow_pickle=True)", ["allow_pickle"]),
        ("import numpy as np\nnp.load(path)", []),
        ("Model.from_pretrained(path, trust_remote_code=trusted)", ["trust_remote_code"]),
        ("eval(text)", ["eval"]),
        ("model.eval()", []),
        ("import yaml\nyaml.safe_load(text)", []),
    ],
)
def test_what_is_looked_for_is_found(source: str, found: list[str]) -> None:
    assert forbidden(source) == found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_of_data_can_run_code(path: Path) -> None:
    name = str(path.relative_to(ROOT))
    assert [use for use in forbidden(path.read_text(encoding="utf-8")) if (name, use) not in ALLOWED] == []


def test_the_code_of_a_model_is_trusted_by_its_own_name_alone() -> None:
    from omegaconf import OmegaConf

    from pathor1.recipe import load
    from pathor1.rl.verl_config import build, leaves

    demo = ROOT / "ray_jobs/recipes/demo_grpo.toml"
    key = "actor_rollout_ref.model.trust_remote_code"
    for settings, trusted in (([], False), ([f"verl.{key}=true"], True)):
        config = build(load(demo, settings), accelerator="cpu")
        keys = [name for name in leaves(OmegaConf.to_container(config)) if name.endswith(".trust_remote_code")]
        assert key in keys
        assert OmegaConf.select(config, key) is trusted
        assert not any(OmegaConf.select(config, name) for name in keys if name != key)
