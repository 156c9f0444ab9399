"""What keeps a server on one machine to itself."""

from __future__ import annotations

import ipaddress
from typing import Any


def keep_to_loopback() -> None:
    """Let the replica of this process listen on the loopback interface alone, if its node does.

    Each replica opens a port for calls from other replicas, on all interfaces, and unpickles what
    comes in there. A Ray of one machine has no need of it; in a cluster the network's rules say who
    reaches its nodes. It has no setting, so its one call is replaced, before it is made: when a
    deployment is constructed.
    """
    import ray
    from ray.serve._private import replica

    if not ipaddress.ip_address(ray.util.get_node_ip_address()).is_loopback:
        return
    add = replica.add_port_to_grpc_server

    def inside(server: Any, address: str) -> Any:
        return add(server, address.replace("[::]", "127.0.0.1"))

    replica.add_port_to_grpc_server = inside
