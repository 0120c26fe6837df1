"""Imports point one way, and what has to be light is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# From the ground up: a unit (a package or module of ours) imports from lines above its own, and from itself.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("rewards", "errors", "files", "heap", "interpreter", "fork_launcher"),
    ("fork_server",),
    ("places",),
    ("samples",),
    ("prompts", "recipe_errors", "recipe_tree", "recipe_table"),
    ("training", "recipe_rl"),
    ("recipe",),
    ("contrastive",),
    ("benchmark", "stage"),
    ("recipe_docs", "storage", "runs", "ray_cluster", "attempts", "alive", "weights_only"),
    ("data", "model"),
    ("checkpoints", "tracking", "ray_train"),
    ("format_docs", "ray_ranks", "same_run"),
    ("evaluation",),
    ("rl", "supervised", "clip", "curation"),
    ("metric_docs", "score", "report"),
    ("service",),
    ("ray_head",),
    ("demo",),
    ("commands",),
    ("cli",),
    ("attempt", "ray_jobs"),
)
RANK = {unit: rank for rank, units in enumerate(LAYERS) for unit in units}
FILES = [path for folder in ("pathor1", "rewards", "ray_jobs") for path in sorted((ROOT / folder).rglob("*.py"))]

HEAVY = ("torch", "ray", "vllm", "verl", "transformers", "deepspeed", "tensordict", "hydra")
LIGHT = (
    "rewards",
    "pathor1.errors",
    "pathor1.files",
    "pathor1.places",
    "pathor1.samples",
    "pathor1.prompts",
    "pathor1.recipe",
    "pathor1.benchmark",
    "pathor1.stage",
    "pathor1.recipe_docs",
    "pathor1.storage",
    "pathor1.runs",
    "pathor1.ray_cluster",
    "pathor1.ray_head",
    "pathor1.attempts",
    "pathor1.fork_server",
    "pathor1.alive",
    "pathor1.data.images",
    "pathor1.data.rendered",
    "pathor1.data.ihc",
    "pathor1.data.stream",
    "pathor1.model.check",
    "pathor1.model.tiny",
    "pathor1.rl.algorithms",
    "pathor1.checkpoints",
    "pathor1.rl.copies",
    "pathor1.rl.export",
    "pathor1.rl.scoring",
    "pathor1.rl.run",
    "pathor1.rl.verl_config",
    "pathor1.score",
    "pathor1.report.page",
    "pathor1.evaluation.run",
    "pathor1.curation.recipe",
    "pathor1.curation.running",
    "pathor1.demo",
    "pathor1.service.manifests",
    "pathor1.supervised.starts",
    "pathor1.tracking.log",
    "pathor1.cli",
)


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit(module: str) -> str | None:
    """The package or module of ours that a module belongs to; None for what is not ours, and for `pathor1` itself."""
    first, *rest = module.split(".")
    if first in ("rewards", "ray_jobs"):
        return first
    return rest[0] if first == "pathor1" and rest else None


def imported(path: Path) -> Iterator[str]:
    """Full names of all that a file imports, inside functions too, without what is for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide where they go"
            yield from (f"{node.module}.{name.name}" for name in node.names)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path: Path) -> None:
    importer = unit(module_name(path))
    for name in imported(path):
        target = unit(name)
        if target is None or target == importer:
            continue
        if target == "backends":
            assert (importer, name) == ("commands", "pathor1.backends.doctor"), f"{path} imports {name}"
        elif importer == "backends":
            assert target in ("errors", "files"), f"{path} imports {name}"
        else:
            assert {importer, target} <= set(RANK), f"{path}: give {importer} and {target} a place in LAYERS"
            assert importer is not None
            assert RANK[target] < RANK[importer], f"{path} ({importer}) imports {name} ({target})"


def test_rewards_use_the_standard_library_alone() -> None:
    outside = {
        name
        for path in FILES
        if unit(module_name(path)) == "rewards"
        for name in imported(path)
        if name.split(".")[0] not in {*sys.stdlib_module_names, "rewards"}
    }
    assert not outside


def loaded_after(statement: str) -> set[str]:
    """Top-level modules that a fresh Python holds after a statement."""
    code = f"import sys; {statement}; print(' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    return set(done.stdout.split())


def test_light_modules_leave_the_heavy_ones_out() -> None:
    loaded = loaded_after(f"import {', '.join(LIGHT)}; pathor1.cli.build_parser()")
    assert not loaded & set(HEAVY)


def test_the_parser_needs_nothing_but_the_standard_library() -> None:
    before = loaded_after("pass")
    loaded = loaded_after("import pathor1.cli; pathor1.cli.build_parser()") - before
    assert loaded - set(sys.stdlib_module_names) == {"pathor1"}
