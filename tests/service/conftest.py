"""A Ray head that asks for a token, and whose environment holds secrets that nothing may show."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest
from clusters import Head
from clusters import head as started_head
from processes import wait_until

# In the environment of the head and of every command: a cluster's token, a tracker's key, and one of the lab's own.
SECRETS = {name: secrets.token_hex(20) for name in ("RAY_AUTH_TOKEN", "WANDB_API_KEY", "LAB_PASSWORD")}


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    variables = {"RAY_AUTH_MODE": "token", "WANDB_MODE": "offline", **SECRETS}
    with started_head(variables=variables) as (one, _):
        wait_until(lambda: one.run("ray job list", seconds=60).returncode == 0, 300, "a Ray head that takes jobs")
        yield one
