"""Addresses of Ray clusters that are gone, are something else, or are there."""

import contextlib
import socket
import threading

import pytest
from ray.util import get_node_ip_address
from ray_nodes import free_ports
from tiny import write_job

from shapray.cluster import connect
from shapray.cluster.connect import join
from shapray.errors import JobError
from shapray.run import main

pytestmark = pytest.mark.usefixtures("no_ray")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(connect, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(connect, "QUIET_SECONDS", 0.1)


@pytest.fixture
def dead():
    """An address at which nobody listens."""
    return f"127.0.0.1:{free_ports(1)[0]}"


@contextlib.contextmanager
def listener(answer):
    """The port of a server that is not Ray; `answer` is what it says to everybody, if anything."""
    with socket.socket() as server:
        server.bind(("", 0))
        server.listen()
        taken = []

        def serve():
            with contextlib.suppress(OSError):  # closed
                while True:
                    taken.append(server.accept()[0])
                    if answer:
                        taken[-1].sendall(answer)
                        taken[-1].close()

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        for connection in taken:
            connection.close()


def test_a_cluster_that_is_gone_is_one_message_and_nothing_is_written(
    impatient, dead, tmp_path, monkeypatch, capsys, caplog
):
    monkeypatch.setenv("RAY_ADDRESS", dead)
    assert main([str(write_job(tmp_path))]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == (
        f"shapray: no Ray cluster answers at {dead} (RAY_ADDRESS): connection refused; "
        "unset it to start Ray on this machine"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]
    assert f"waiting for the Ray cluster at {dead} (RAY_ADDRESS)" in caplog.text


@pytest.mark.parametrize("scheme", ["", "ray://"])
@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_what_listens_there_and_is_not_ray(impatient, scheme, answer):
    with listener(answer) as port:
        address = f"{scheme}{get_node_ip_address()}:{port}"
        with pytest.raises(JobError, match=f"answers at {address} .*does not answer as Ray does"):
            join(address)


def test_a_client_of_a_cluster_that_is_gone(impatient, dead):
    with pytest.raises(JobError, match=f"answers at ray://{dead} .*connection refused"):
        join(f"ray://{dead}")


def test_a_host_that_nobody_knows():
    with pytest.raises(JobError, match=r"answers at no-such-host.invalid:6379 .*unset it"):
        join("no-such-host.invalid:6379")


@pytest.mark.parametrize(
    "address", ["http://127.0.0.1:8265", "127.0.0.1", "127.0.0.1:99999", "ray://head", "a b:6379"]
)
def test_what_is_no_address(address):
    with pytest.raises(JobError, match=rf"RAY_ADDRESS: '{address}' is no address.*HOST:6379"):
        join(address)


def test_the_last_cluster_of_this_machine_was_killed(impatient, dead, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(dead)
    with pytest.raises(JobError, match=r"answers at auto \(RAY_ADDRESS\): connection refused"):
        join("auto")
