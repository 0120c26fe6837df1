"""A Ray head in a network and process namespace of its own, where other clusters cannot be met or stopped."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from clusters import Head
from clusters import head as started_head
from processes import wait_until


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with started_head() as (one, _):
        wait_until(lambda: one.run("ray job list", seconds=60).returncode == 0, 120, "a Ray head that takes jobs")
        yield one
