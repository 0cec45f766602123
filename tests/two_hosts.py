"""Two hosts on one machine: network namespaces joined by a veth pair, which needs root (CAP_NET_ADMIN)."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

ADDRESSES = ("10.231.77.1", "10.231.77.2")


@dataclass(frozen=True)
class Host:
    """A network namespace with one interface."""

    namespace: str
    interface: str
    address: str

    def command(self, *command: str) -> list[str]:
        """Have a command run on this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def cut_off(self) -> None:
        """Let no packet of this host arrive any more, nor tell anybody."""
        ip("-n", self.namespace, "link", "set", self.interface, "down")

    def reconnect(self) -> None:
        """Take `cut_off` back."""
        ip("-n", self.namespace, "link", "set", self.interface, "up")


@contextmanager
def two_hosts() -> Iterator[tuple[Host, Host]]:
    """Make two hosts and remove them, or skip where the machine forbids it."""
    first, second = (
        Host(f"tuneline-{os.getpid()}-{name}", f"tl{os.getpid()}{name}"[:15], address)
        for name, address in zip("ab", ADDRESSES, strict=True)
    )
    made = subprocess.run(["ip", "netns", "add", first.namespace], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no network namespace can be made here: {made.stderr.strip()}")
    try:
        ip("netns", "add", second.namespace)
        ip("link", "add", first.interface, "type", "veth", "peer", "name", second.interface)
        for host in (first, second):
            ip("link", "set", host.interface, "netns", host.namespace)
            ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", host.interface)
            for interface in ("lo", host.interface):
                ip("-n", host.namespace, "link", "set", interface, "up")
        yield first, second
    finally:
        for host in (first, second):
            subprocess.run(["ip", "netns", "delete", host.namespace], capture_output=True, check=False)


def ip(*arguments: str) -> None:
    """Run `ip`; its words are the test's when it fails."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
