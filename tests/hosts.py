"""Hosts of one machine: network namespaces with an address and a name of their own, on a bridge."""

from __future__ import annotations

import contextlib
import os
import secrets
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LINK = "eth0"


class NoHosts(Exception):
    """This system, or this user, cannot make hosts; the message says why."""


@dataclass(frozen=True)
class Host:
    """A host that the test process reaches by its address.

    Attributes:
        name: what it is called, by itself and by the others.
        address: its own.
        namespace: of its network.
        port: the bridge's end of its cable.
        neighbours: lines of a hosts file.
    """

    name: str
    address: str
    namespace: str
    port: str
    neighbours: str

    def here(self, command: Sequence[str]) -> list[str]:
        """Return the words that run a command on this host."""
        prepare = (
            f"hostname {self.name}",
            f"printf %b {shlex.quote(self.neighbours)} > /run/hosts",
            "mount --bind /run/hosts /etc/hosts",
            'exec "$@"',
        )
        # A file system of its own for /run keeps the file of names apart from the machine's.
        script = " && ".join(("mount -t tmpfs none /run", *prepare))
        words = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "--mount"]
        return [*words, "sh", "-c", script, "sh", *command]

    def cut_off(self) -> None:
        """Unplug its cable."""
        _ip("link", "set", self.port, "down")

    def join(self) -> None:
        """Plug it in again."""
        _ip("link", "set", self.port, "up")


@contextlib.contextmanager
def hosts(count: int) -> Iterator[list[Host]]:
    """Make hosts, and take them away at the end of the block.

    Raises:
        NoHosts: they cannot be made here.
    """
    tag = secrets.token_hex(3)
    bridge, net = f"sb{tag}", f"10.213.{secrets.randbelow(254) + 1}"
    names = [f"host-{tag}-{number}" for number in range(count)]
    addresses = [f"{net}.{number + 1}" for number in range(count)]
    pairs = zip(addresses, names, strict=True)
    neighbours = "\\n".join(["127.0.0.1 localhost", *(f"{a} {n}" for a, n in pairs), ""])
    made = [
        Host(name, address, f"sn{tag}{number}", f"sp{tag}{number}", neighbours)
        for number, (name, address) in enumerate(zip(names, addresses, strict=True))
    ]
    try:
        try:
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{net}.254/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
            for host in made:
                _plug_in(host, bridge)
            subprocess.run(made[0].here(["true"]), capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            raise NoHosts(f"no hosts can be made here: {str(said).strip()}") from error
        yield made
    finally:
        for host in made:
            _try_ip("netns", "del", host.namespace)
            _try_ip("link", "del", host.port)
        _try_ip("link", "del", bridge)


def _plug_in(host: Host, bridge: str) -> None:
    _ip("netns", "add", host.namespace)
    _ip(
        *("link", "add", host.port, "type", "veth"),
        *("peer", "name", _LINK, "netns", host.namespace),
    )
    _ip("link", "set", host.port, "master", bridge, "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", _LINK)
    for device in ("lo", _LINK):
        _ip("-n", host.namespace, "link", "set", device, "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], capture_output=True, text=True, check=True)


def _try_ip(*words: str) -> None:
    with contextlib.suppress(OSError):
        subprocess.run(["ip", *words], capture_output=True, check=False)


def can_make_hosts() -> str:
    """Return why no hosts can be made here, or "" if they can."""
    if os.getuid() != 0:
        return "only root may make network namespaces"
    try:
        with hosts(1):
            return ""
    except NoHosts as error:
        return str(error)
