"""Samples are written by vLLM's engine on Ray Data."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray
from small import Small

from pathor1.curation.recipe_samples import Reason
from pathor1.curation.writing import Requests, write_replies
from pathor1.evaluation.answers import Parts

pytestmark = pytest.mark.timeout(400)
SCHEMA = pa.schema([("key", pa.string()), ("id", pa.string()), ("prompt", pa.string())])


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_an_engine_writes_what_has_no_reply_yet(small: Small, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"key": f"k{n}", "id": f"r{n}", "prompt": f"What is {n}?"} for n in range(130)]
    rows[100]["prompt"] = "long " * 400
    requests = Requests.write(tmp_path / "requests.parquet", iter(rows), SCHEMA)
    store = Parts(tmp_path / "replies", requests.schema, {})
    reply = {"reply": "there", "finish": "stop", "tokens_in": 2, "tokens_out": 3}
    done = [{"key": f"k{n}", "id": f"r{n}", **reply} for n in range(98)]
    store.write(done)
    settings = Reason(model=str(small.model), max_tokens=16, temperature=0.0, max_model_tokens=256)
    cost = write_replies(settings, requests, store, name="t")
    found = {row["id"]: row for row in store.read()}
    assert len(found) == 130
    assert all(found[row["id"]] == row for row in done)
    long = found["r100"]
    assert long["finish"].startswith("refused: a prompt of ")
    new = [row for id_, row in found.items() if int(id_[1:]) >= 98 and id_ != "r100"]
    assert len(new) == 31
    assert all(0 < row["tokens_out"] <= 16 < row["tokens_in"] < 60 for row in new)
    assert {row["finish"] for row in new} <= {"stop", "length"}
    assert len({row["reply"] for row in new}) > 1, "each is asked its own"
    assert cost.tokens_out == sum(row["tokens_out"] for row in found.values())
