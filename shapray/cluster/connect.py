"""Workers on the Ray cluster that ``RAY_ADDRESS`` names, or on one started on this machine."""

import contextlib
import logging
import os
import platform
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from ray.util import get_node_ip_address

from shapray.cluster.ray_pool import RayPool
from shapray.config import Cluster
from shapray.errors import ClusterError, JobError

PATIENCE_SECONDS = 30.0  # with an address at which nobody answers: a head node may be starting
QUIET_SECONDS = 3.0  # then it is said that one is waiting

logger = logging.getLogger(__name__)

_ADDRESS = re.compile(r"(ray://)?(\[[0-9a-fA-F:]+\]|[^\s:/\[\]]+):(\d{1,5})")
_OTHER_SCHEME = re.compile(r"(?!https?:|ray:)\w+://\S+")  # of a service that brings its own client
_START_HERE = "unset it to start Ray on this machine"


@contextlib.contextmanager
def on_ray(make: Callable[[str], Any], cluster: Cluster) -> Iterator[RayPool]:
    """Workers on the Ray cluster that this process belongs to (``RAY_ADDRESS``, set by
    ``ray job submit``), or on one started on this machine and stopped again at the end.

    Args:
        make: device -> worker.
    Raises:
        JobError: no cluster answers at ``RAY_ADDRESS``, or it cannot be joined, or it cannot hold
            a worker.
        ClusterError: Ray cannot start here.
    """
    joined_before = ray.is_initialized()
    if not joined_before:
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            _start()
            cluster = cluster.model_copy(update={"grows": False})  # it is this machine
        else:
            join(address)
    pool = None
    try:
        pool = RayPool(make, cluster)
        yield pool
    finally:
        if pool is not None and joined_before:
            pool.close()  # otherwise they end with the connection
        if not joined_before:
            ray.shutdown()


def _start() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        # Not shown: what workers print; their errors come back with the tasks.
        ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray raises many kinds
        raise ClusterError(
            "Ray cannot start on this machine; it needs room in /dev/shm and in its folder "
            f"({_folder()}), where its logs are. Ray says: {_in_a_line(error)}"
        ) from error


def join(address: str) -> None:
    """Join the cluster there.

    Asks for an answer before Ray does, who would ask for seven minutes and name no reason.

    Raises:
        JobError: no cluster answers there, or it cannot be joined.
    """
    endpoint = _endpoint(address)
    with _said_after(QUIET_SECONDS, f"waiting for the Ray cluster at {address} (RAY_ADDRESS)"):
        if endpoint is not None:
            _check(address, *endpoint)
        try:
            ray.init(address, logging_level=logging.WARNING)
        except Exception as error:  # a version, a token, an address: Ray raises many kinds
            if address == "auto" and endpoint is None:
                raise JobError(
                    f"RAY_ADDRESS: auto, and no Ray cluster runs on this machine; {_START_HERE}"
                ) from error
            raise JobError(
                f"the Ray cluster at {address} (RAY_ADDRESS) cannot be joined: it wants its own "
                f"versions of Ray and Python (here {ray.__version__} and "
                f"{platform.python_version()}), RAY_AUTH_MODE=token and RAY_AUTH_TOKEN if it has a "
                "token, and a driver on one of its nodes (from elsewhere: ray job submit, or a "
                f"ray:// address). Ray says: {_in_a_line(error)}"
            ) from error


def _endpoint(address: str) -> tuple[str, int] | None:
    """Host and port that Ray will turn to; None if only Ray can know.

    Raises:
        JobError: it is no address.
    """
    if address == "auto":
        latest = _folder() / "ray_current_cluster"  # left behind by a cluster that was killed
        return _endpoint(latest.read_text().strip()) if latest.is_file() else None
    if _OTHER_SCHEME.fullmatch(address):
        return None
    found = _ADDRESS.fullmatch(address)
    if not found or int(found[3]) >= 2**16:
        raise JobError(
            f"RAY_ADDRESS: '{address}' is no address of a Ray cluster; write HOST:6379 with the "
            "port that the head node was started with (the dashboard's, 8265, is for ray job "
            "submit), ray://HOST:10001, or auto for the cluster on this machine; or "
            f"{_START_HERE}"
        )
    client, host, port = found[1], found[2].strip("[]"), int(found[3])
    if not client and host in ("localhost", "127.0.0.1", "::1"):
        host = get_node_ip_address()  # so does Ray
    return host, port


def _check(address: str, host: str, port: int) -> None:
    """Something listens there, and it is what the address promises.

    Raises:
        JobError: it is not; after a while in which a head node could have come up.
    """
    nobody = f"no Ray cluster answers at {address} (RAY_ADDRESS)"
    try:
        _wait_for_listener(host, port)
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        raise JobError(f"{nobody}: {why}; {_START_HERE}") from error
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return  # its certificates are Ray's to use
    answer = _health(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    if answer is grpc.StatusCode.DEADLINE_EXCEEDED:
        raise JobError(
            f"{nobody}: something listens there and does not answer as Ray does (the head node's "
            f"port is 6379 unless told otherwise; with TLS, set RAY_USE_TLS=1); {_START_HERE}"
        )
    client = address.startswith("ray://")
    if answer is grpc.StatusCode.UNIMPLEMENTED and not client:
        raise JobError(
            f"RAY_ADDRESS: {address} is the port for Ray's client: write ray://{address}, or the "
            "port that the head node was started with (6379 unless told otherwise)"
        )
    if answer is grpc.StatusCode.OK and client:
        raise JobError(
            f"RAY_ADDRESS: {address} is the head node's own port: write it without ray://, or the "
            "port for Ray's client (10001 unless told otherwise)"
        )


def _wait_for_listener(host: str, port: int) -> None:
    """Raises OSError: nobody takes a connection for a while, or there is no such host."""
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            socket.create_connection((host, port), PATIENCE_SECONDS).close()
            return
        except socket.gaierror:
            raise
        except OSError:
            if time.monotonic() > until:
                raise
        time.sleep(0.2)


def _health(target: str) -> grpc.StatusCode:
    """What comes back on gRPC's own health check; DEADLINE_EXCEEDED if no gRPC server is there."""
    with grpc.insecure_channel(target, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        try:
            check(b"", timeout=PATIENCE_SECONDS, wait_for_ready=True)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def _folder() -> Path:
    """Where Ray keeps what it knows about clusters on this machine."""
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())


@contextlib.contextmanager
def _said_after(seconds: float, message: str) -> Iterator[None]:
    timer = threading.Timer(seconds, logger.warning, (message,))
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
