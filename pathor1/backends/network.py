"""Has gloo speak on the network by which Ray's nodes know each other; on every kind of machine.

gloo announces the address that the host's own name stands for. Many machines have 127.0.0.1 or 127.0.1.1 for that
(/etc/hosts), and ranks on two such nodes wait for each other in vain. Entry point `verl.plugins`: verl loads it in each
process of a run, before ranks meet.
"""

from __future__ import annotations

import os

import psutil
import ray

VARIABLE = "GLOO_SOCKET_IFNAME"


def interface(address: str) -> str | None:
    """The name of this machine's network interface with an IP address; None = no interface has it."""
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.address.partition("%")[0] == address for each in addresses):
            return name
    return None


def choose() -> None:
    """Sets gloo's own variable where nobody has. Does nothing outside of Ray, and where Ray's address is another's."""
    if VARIABLE in os.environ or not ray.is_initialized():
        return
    if name := interface(ray.util.get_node_ip_address().strip("[]")):
        os.environ[VARIABLE] = name


choose()
