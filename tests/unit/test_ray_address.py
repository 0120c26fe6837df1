"""A RAY_ADDRESS that leads nowhere: one line at once, where Ray itself tries for minutes."""

from __future__ import annotations

import re
import socket

import pytest

from pathor1.errors import RunError
from pathor1.ray_cluster import ray_cluster

WHAT_TO_DO = r"; set it to the HOST:6379 of a head \(`ray start --head`\), or unset it to start Ray on this machine$"


def unused_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "nowhere.invalid"])
def test_where_nobody_listens(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{host}:{unused_port()}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(
        RunError, match=rf"^RAY_ADDRESS is {re.escape(address)}, and nobody listens there \(.*{WHAT_TO_DO}"
    ):
        ray_cluster({}).__enter__()


@pytest.mark.parametrize("address", ["127.0.0.1", ":6379", "host:ray", "127.0.0.1:99999999"])
def test_what_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(RunError, match=rf"^RAY_ADDRESS is {re.escape(address)}, .*{WHAT_TO_DO}"):
        ray_cluster({}).__enter__()
