"""torch's store, at which the ranks of a run meet, listens at its host's address alone where that is the loopback.

By itself it listens on all interfaces of a machine, whatever its host is called, and asks nobody who they are.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from typing import Any

import torch


def install() -> None:
    """Of all stores that torch makes for a rendezvous. Those of a host that other machines know stay as they are."""
    if torch.distributed.is_available():
        # By its name: `torch.distributed.rendezvous` is the function of that name.
        sys.modules["torch.distributed.rendezvous"].__dict__["TCPStore"] = tcp_store


def tcp_store(host_name: str, port: int, *, is_master: bool = False, **options: Any) -> torch.distributed.TCPStore:
    """torch's `TCPStore`, its port 0 = any that is free."""
    if not is_master or not _is_loopback(host_name):
        return torch.distributed.TCPStore(host_name, port, is_master=is_master, **options)
    listening = socket.create_server((host_name, port), backlog=2048)
    port = listening.getsockname()[1]
    # The store closes it in the end.
    return torch.distributed.TCPStore(host_name, port, is_master=True, master_listen_fd=listening.detach(), **options)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
