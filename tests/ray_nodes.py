"""Real Ray nodes on this machine, each its own processes, with pretended GPUs."""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from ray.util import get_node_ip_address
from tiny import ENVIRONMENT

RAY = str(Path(sys.executable).with_name("ray"))
AUTHENTICATION = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


class Node:
    """A node's processes, from `ray start`."""

    def __init__(self, *arguments: str) -> None:
        log = tempfile.NamedTemporaryFile()  # noqa: SIM115 - it goes with this call
        self.process = psutil.Popen(
            [
                *(RAY, "start", "--block", "--disable-usage-stats", *arguments),
                *("--object-store-memory=100000000", "--min-worker-port=0", "--max-worker-port=0"),
                f"--dashboard-agent-listen-port={free_ports(1)[0]}",
            ],
            env=environment(),
            stdout=log.fileno(),
            stderr=subprocess.STDOUT,
        )
        until = time.monotonic() + 120
        while "Ray runtime started" not in (shown := Path(log.name).read_text()):
            assert time.monotonic() < until, shown
            assert self.process.poll() is None, shown
            time.sleep(0.1)

    def kill(self) -> None:
        """All of them at once, as when a machine loses its power."""
        with contextlib.suppress(psutil.NoSuchProcess):
            everything = [*self.process.children(recursive=True), self.process]
            for process in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(everything, timeout=20)


@dataclass
class Head:
    """A cluster's first node, with what is needed to join it and to submit to it."""

    node: Node
    address: str
    dashboard: str
    client: int  # port for Ray's client

    @property
    def joined(self) -> dict[str, str]:
        """The environment of a driver that joins."""
        return {"RAY_ADDRESS": self.address} | AUTHENTICATION

    def job(self, command: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess:
        """``ray job ...``"""
        return subprocess.run(
            [RAY, "job", command, "--address", self.dashboard, *arguments],
            cwd=cwd,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def takes_jobs(self) -> bool:
        token = {"Authorization": f"Bearer {AUTHENTICATION['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(f"{self.dashboard}/api/jobs/", headers=token)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=10):
            return True
        return False

    @contextlib.contextmanager
    def another(self, *arguments: str) -> Iterator[Node]:
        """A further node."""
        node = Node(f"--address={self.address}", *arguments)
        try:
            yield node
        finally:
            node.kill()


@contextlib.contextmanager
def ray_head(*arguments: str) -> Iterator[Head]:
    """A cluster of one node, and its end."""
    port, dashboard, client = free_ports(3)
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # short: sockets lie in it
    node = Node(
        *("--head", f"--port={port}", f"--temp-dir={folder}", *arguments),
        *("--include-dashboard=true", "--dashboard-host=127.0.0.1"),
        *(f"--dashboard-port={dashboard}", f"--ray-client-server-port={client}"),
    )
    head = Head(node, f"{get_node_ip_address()}:{port}", f"http://127.0.0.1:{dashboard}", client)
    try:
        until = time.monotonic() + 120
        while not head.takes_jobs():
            assert time.monotonic() < until, "the head node does not answer"
            time.sleep(0.1)
        yield head
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)


def environment() -> dict[str, str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return inherited | {"PATH": path} | ENVIRONMENT | AUTHENTICATION


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as open_sockets:
        found = [open_sockets.enter_context(socket.socket()) for _ in range(n)]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in found]
