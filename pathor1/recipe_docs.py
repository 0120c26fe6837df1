"""Makes `docs/recipes.md` from the models of a recipe: `python -m pathor1.recipe_docs [FILE]`."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection
from typing import Any

from pydantic.fields import FieldInfo

from pathor1 import files
from pathor1.benchmark import BenchmarkRecipe
from pathor1.contrastive import ClipEvaluation, ClipRecipe, ProbeSet, RetrievalSet, ZeroShotSet
from pathor1.recipe import Recipe, table_of
from pathor1.recipe_table import Table
from pathor1.stage import StageRecipe

_HEAD = """\
# Recipes

<!-- Made by `python -m pathor1.recipe_docs docs/recipes.md` from pathor1/recipe.py, training.py, stage.py,
     contrastive.py and benchmark.py; change it there. -->

A run is one TOML file. `ray_jobs/recipes/` holds some to start from:

| recipe | what it trains | on |
|---|---|---|
| `demo_grpo.toml` | a small Qwen2.5-VL, by GRPO | two CPU cores |
| `demo_dapo.toml` | the same, by DAPO | two CPU cores |
| `patho_r1_7b_grpo.toml` | Qwen2.5-VL-7B, by GRPO | 8 GPUs |
| `patho_r1_3b_dapo.toml` | Qwen2.5-VL-3B, by DAPO | 8 GPUs |
| `stages/patho_r1_3b_cpt.toml`, `stages/patho_r1_7b_cpt.toml` | Qwen2.5-VL, continued pretraining | 8 or 4 x 8 GPUs |
| `stages/patho_r1_3b_sft.toml`, `stages/patho_r1_7b_sft.toml` | its fine-tuning | 8 or 4 x 8 GPUs |
| `clip/pathoclip_b.toml`, `clip/pathoclip_l.toml` | PathoCLIP, both stages | 8 GPUs |

```
pathor1 rl ray_jobs/recipes/demo_grpo.toml                      # run it
pathor1 rl ray_jobs/recipes/demo_grpo.toml --set rl.steps=10    # with another value; --set can come several times
pathor1 rl ray_jobs/recipes/demo_grpo.toml --dry-run            # show every value, and verl's config, and stop
pathor1 rl --resume runs/demo                                   # go on with a run
```

A key that is not below is an error, and so is a value of another type: `"8"` is not `8`. The run folder keeps the
recipe with every value in `recipe.toml`. Relative paths start from the folder the command is started in; in a Ray
job, from `$PATHOR1_STORAGE`.

Samples may also lie in an object store: `s3://bucket/folder`, `s3://bucket/folder/**/*.parquet`, `gs://bucket/...`,
with bucket and key as they are (no `%20`). How it is reached is what the environment says:

- `s3://`: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, a profile of `~/.aws`, or the machine's role; `AWS_REGION`,
  the bucket's; `AWS_ENDPOINT_URL` for MinIO and other stores that speak S3.
- `gs://`: `GOOGLE_APPLICATION_CREDENTIALS`, `gcloud auth application-default login`, or the machine's account.

Ray's workers read by themselves. On a cluster that a command starts on its own machine they have the command's
environment; on any other every node needs its own, that of its `ray start` or of its pod. Keys are not given to a job,
whose variables can be read in the dashboard; `cluster.secrets` has their names.

In brackets: where a default comes from. *verl* is verl 0.9.1's own default, *verl's geo3k script* its example for GRPO
on Qwen2.5-VL-7B with pictures, *verl-recipe* the example for DAPO on the same model, *DAPO* the DAPO paper, *the
paper* Patho-R1's.
"""

_VERL = """\

Whatever else verl can be told goes here, by the names verl has for it (`verl/trainer/config/ppo_trainer.yaml`). A key
that verl does not have is an error, found by `--dry-run` too, and so is one that the recipe has a key of its own for
(batch, lengths, steps, nodes). Over
everything else that the recipe's keys become, these win.

```toml
[verl]
actor_rollout_ref.actor.optim.betas = [0.9, 0.95]
```

On the command line: `--set verl.actor_rollout_ref.actor.entropy_coeff=0.001`.
"""

_STAGES = """\

# Recipes of supervised stages

A recipe with a table `[cpt]` or `[sft]` is the run of a stage, continued pretraining or fine-tuning, for `pathor1 cpt`
and `pathor1 sft` ([supervised.md](supervised.md)). It has these keys alone. `[sft]` has those of `[cpt]`, and
`[cluster]` those of a run above; it trains on `cluster.nodes` x `cluster.accelerators_per_node` workers.
"""

_BENCHMARKS = """\

# Recipes of benchmarks

A recipe with a table `[benchmark]` is of no run: it says which models are asked which questions, for `pathor1
evaluate` ([evaluation.md](evaluation.md)). It has these keys alone. `ray_jobs/recipes/benchmarks/` has one for each of
the paper's benchmarks.
"""

_CLIP = """\

# Recipes of contrastive training

A recipe with a table `[stage_1]` is a run of PathoCLIP's training, for `pathor1 clip train` ([clip.md](clip.md)). It
has these keys alone. `[stage_2]`, which may be left out, has those of `[stage_1]`, and `[cluster]` those of a run
above; it trains on `cluster.nodes` x `cluster.accelerators_per_node` workers.
"""

_CLIP_EVALUATION = """\

# Recipes of an evaluation of CLIP models

For `pathor1 clip zero-shot`, `retrieval` and `probe`, each of which takes its own tables. SET names a set; what the
paper has of `LC-Lung`, `LC-Colon`, `WSSS4LUAD`, `SICAPv2`, `BMT`, `ARCH` and `Archive` is printed beside it.
"""

_BOUNDS = {"exclusiveMinimum": "> {}", "minimum": "≥ {}", "exclusiveMaximum": "< {}", "maximum": "≤ {}"}
_TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "true or false"}


def render() -> str:
    """The page as Markdown."""
    stage = tables(StageRecipe, "", twice=("sft", "cluster"))
    clip = tables(ClipRecipe, "", twice=("stage_2", "cluster"))
    sets: dict[str, type[Table]] = {"zero_shot": ZeroShotSet, "retrieval": RetrievalSet, "probe": ProbeSet}
    evaluation = tables(ClipEvaluation, "", twice=tuple(sets))
    for name, table in sets.items():
        evaluation += tables(table, f"{name}.SET.")
    benchmark = tables(BenchmarkRecipe, "")
    parts = [_STAGES, *stage, _CLIP, *clip, _CLIP_EVALUATION, *evaluation, _BENCHMARKS, *benchmark]
    return "".join([_HEAD, *tables(Recipe, ""), *parts])


def tables(table: type[Table], prefix: str, twice: Collection[str] = ()) -> list[str]:
    """This table's section, and after it those of the tables in it. twice: those that are told elsewhere."""
    values = {
        name: field for name, field in table.model_fields.items() if table_of(field) is None and name not in twice
    }
    verl = values.pop("verl", None)
    heading = f"`[{prefix.removesuffix('.')}]`" if prefix else "Keys before all tables"
    schema = table.model_json_schema()["properties"]
    rows = [_row(f"{prefix}{name}", field, schema[name]) for name, field in values.items()]
    sections = [
        f"\n## {heading}\n\n{table.__doc__}\n\n| key | value | default | what it is |\n|---|---|---|---|\n"
        + "".join(rows)
    ]
    for name, field in table.model_fields.items():
        child = table_of(field)
        if child is not None and name not in twice:
            sections += tables(child, f"{prefix}{name}.")
    if verl is not None:
        sections.append(f"\n## `[verl]`\n\n{verl.description}\n{_VERL}")
    return sections


def _row(key: str, field: FieldInfo, properties: dict[str, Any]) -> str:
    if field.is_required():
        default = "required"
    elif field.default is None:
        default = "not set"
    else:
        default = f"`{json.dumps(field.default)}`"
    return f"| `{key}` | {_allowed(properties)} | {default} | {field.description} |\n"


def _allowed(properties: dict[str, Any]) -> str:
    """A schema in words: "whole number > 0", "`"grpo"` or `"dapo"`"."""
    if "anyOf" in properties:  # a value or nothing
        return _allowed(next(choice for choice in properties["anyOf"] if choice.get("type") != "null"))
    if "enum" in properties:
        return " or ".join(f"`{json.dumps(value)}`" for value in properties["enum"])
    if properties["type"] == "object":
        return f"table of {_allowed(properties['additionalProperties'])}"
    if properties["type"] == "array":
        return f"list of {_allowed(properties['items'])}"
    bounds = [words.format(properties[name]) for name, words in _BOUNDS.items() if name in properties]
    return " ".join([_TYPES[properties["type"]], ", ".join(bounds)]).strip()


if __name__ == "__main__":
    if len(sys.argv) > 1:
        files.write(sys.argv[1], render())
    else:
        print(render(), end="")
