"""The names that the app goes by.

A page of another site can have its own name lead to 127.0.0.1 and then read this app as if it
were that site's own (DNS rebinding). The browser still says by which name it came, so the app
answers only to names that are its own.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field

_ANYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Hosts:
    """Which ``Host`` headers are answered.

    ``by_number``: every IP address is, as nobody can have one lead elsewhere. So it is where the
    app listens on all addresses of a machine, some of which it may not know.
    """

    names: set[str] = field(default_factory=set)
    by_number: bool = False

    def answer_to(self, host: str) -> bool:
        """Is ``host``, the header as it came, one of the app's own?"""
        name = _bare(host)
        return name != "" and (name in self.names or (self.by_number and _is_address(name)))

    def add(self, host: str) -> None:
        """Answer to ``host`` as well."""
        self.names.add(_bare(host))


def hosts_for(listen: str, more: Iterable[str] = ()) -> Hosts:
    """What an app that listens on the address ``listen`` answers to, and to ``more``."""
    address = listen.strip("[]")
    names = {"localhost", "127.0.0.1", "::1", address.lower(), *(_bare(name) for name in more)}
    if address not in _ANYWHERE:
        return Hosts(names)
    own = socket.gethostname().lower()
    return Hosts(names | {own, f"{own}.local", socket.getfqdn().lower()}, by_number=True)


def is_loopback(listen: str) -> bool:
    """Does only this machine reach what listens on the address ``listen``?"""
    name = listen.strip("[]").lower()
    return name == "localhost" or (_is_address(name) and ipaddress.ip_address(name).is_loopback)


def _bare(host: str) -> str:
    """A host without its port, brackets and final dot, in lower case."""
    name = host.strip().lower()
    if name.startswith("["):
        name, _, _ = name[1:].partition("]")
    elif name.count(":") == 1:
        name, _, _ = name.partition(":")
    return name.removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
