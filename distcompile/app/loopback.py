"""The meeting of ranks on one machine: only on its loopback interface, which no other machine reaches.

torchrun's own stores listen on all interfaces, without a password: anyone who reaches them could change the addresses
at which ranks connect to each other.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import TCPStore
from torch.distributed.elastic.rendezvous import RendezvousParameters, rendezvous_handler_registry
from torch.distributed.elastic.rendezvous.static_tcp_rendezvous import StaticTCPRendezvous

BACKEND = "loopback"
"""The name under which torchrun knows it."""
ADDRESS = "127.0.0.1"
TIMEOUT = 300
"""Seconds that ranks may take to join."""


def meet_on_loopback() -> list[str]:
    """Make ranks that this process starts talk on the loopback interface only; return torchrun's options for that."""
    rendezvous_handler_registry.register(BACKEND, _Loopback)
    for name in {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}:
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = name
    return [f"--rdzv-backend={BACKEND}", f"--rdzv-endpoint={ADDRESS}"]


class _Loopback(StaticTCPRendezvous):
    """torchrun's rendezvous of one machine, with a store that is given."""

    def __init__(self, parameters: RendezvousParameters) -> None:
        store = listening_store()
        super().__init__(ADDRESS, store.port, 0, 1, parameters.run_id, TIMEOUT)
        self._store = store  # else torchrun makes a store that listens everywhere

    def get_backend(self) -> str:
        return BACKEND


def listening_store() -> TCPStore:
    """A store for other processes of this machine, at a port that is free."""
    with socket.create_server((ADDRESS, 0), backlog=1024) as server:
        options: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "master_listen_fd": server.fileno()}
        store = TCPStore(ADDRESS, server.getsockname()[1], timeout=timedelta(seconds=TIMEOUT), **options)
        server.detach()  # it is the store's now
    return store
