"""Whole runs on storage that stumbles, turns read-only, fills up or was never to be written."""

import re
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler
from pathlib import Path

import fsspec
import pytest
import torch
from faulty_s3 import BUCKET, QuietServer, faulty_s3
from tiny import (
    DIGITS,
    REPOSITORY,
    image_folder,
    results,
    shards,
    start,
    start_ray,
    without_seconds,
    write_job,
)

from shapray.config import Images, Transform
from shapray.errors import JobError, StorageError
from shapray.inputs.images import open_images
from shapray.inputs.model import load_weights
from shapray.run import main
from shapray.storage.run_directory import RunDirectory

pytestmark = pytest.mark.cluster

FEW = {  # requests: each that is refused costs a pause
    "cluster__images_per_task": 6,
    "prune": {"random_seeds": [0], "export": []},
}
N_SHARDS = 16


@pytest.fixture(scope="module")
def s3(no_ray):
    with faulty_s3() as server:
        yield server


@pytest.fixture(scope="module")
def ray_on_s3(s3):
    """A Ray whose workers have the server's address and credentials."""
    start_ray(num_cpus=2)


@pytest.fixture(autouse=True)
def healthy(request):
    """After each test the server behaves again."""
    yield
    if "s3" in request.fixturenames:
        server = request.getfixturevalue("s3")
        server.share_refused, server.shards_allowed = 0.0, None


@pytest.fixture(scope="module")
def finished_few(tmp_path_factory):
    """The run directory of an undisturbed local run."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunDirectory, "shared", False)
        assert main([str(write_job(folder, **FEW))]) == 0
    return folder / "out"


def same_results(output: str, finished: Path) -> bool:
    """Tables, shards and weights at an S3 URL are those of a local run, and nothing else is."""
    fs, root = fsspec.url_to_fs(output)
    fs.invalidate_cache()
    store = RunDirectory(output)
    expected = results(finished)
    names = {path[len(root) + 1 :] for path in fs.find(root)}
    assert names == {
        *expected,
        "run.json",
        "shards/columns",
        "prune/group_losses.parquet",
    }
    for name, value in expected.items():
        if name.endswith(".parquet"):
            assert store.read_table(name).equals(value), name
        elif name.endswith(".json"):
            assert without_seconds(store.read_json(name)) == value, name
        else:
            assert store.read(name) == value, name
    return True


def sound_shards(output: str) -> int:
    """How many shards are there; all can be read."""
    fs, root = fsspec.url_to_fs(output)
    fs.invalidate_cache()
    store = RunDirectory(output)
    paths = {path[len(root) + 1 :] for path in fs.find(f"{root}/shards")} - {"shards/columns"}
    assert all(store.read_table(path).num_rows == 6 for path in paths)
    return len(paths)


def one_message(shown: str) -> str:
    assert "Traceback" not in shown
    assert "sEcReT" not in shown
    (message,) = [line for line in shown.splitlines() if line.startswith("shapray: ")]
    return message


@pytest.mark.slow
def test_a_fifth_of_the_requests_refused_and_nothing_is_lost(s3, ray_on_s3, finished_few, tmp_path):
    fs = fsspec.filesystem("s3")
    weights = REPOSITORY / "jobs/data/digits_cnn.safetensors"
    fs.pipe_file(f"{BUCKET}/digits.parquet", DIGITS.read_bytes())
    fs.pipe_file(f"{BUCKET}/weights.safetensors", weights.read_bytes())
    url = f"s3://{BUCKET}/digits.parquet"
    job = write_job(
        tmp_path,
        **FEW,
        output=f"s3://{BUCKET}/slow",
        data__calibration__path=url,
        data__evaluation__path=url,
        model__weights=f"s3://{BUCKET}/weights.safetensors",
    )
    s3.share_refused = 0.2
    before = s3.n_refused
    assert main([str(job)]) == 0
    s3.share_refused = 0.0
    assert s3.n_refused - before > 8
    assert same_results(f"s3://{BUCKET}/slow", finished_few)
    record = RunDirectory(f"s3://{BUCKET}/slow").read("run.json")
    assert b"sEcReT" not in record
    assert b"AKIATEST" not in record


def test_a_folder_of_images_with_requests_refused(s3, tmp_path):
    folder = image_folder(tmp_path)
    fsspec.filesystem("s3").put(str(folder), f"{BUCKET}/images", recursive=True)
    sections = [
        Images(source="imagefolder", path=path) for path in (str(folder), f"s3://{BUCKET}/images")
    ]
    local, remote = (open_images(section, Transform(mode="L"), "images") for section in sections)
    assert remote.ids == local.ids
    s3.share_refused = 0.5  # all at once, 60 never come
    assert torch.equal(remote.load(0, len(local)), local.load(0, len(local)))


@pytest.mark.slow
def test_a_bucket_that_turns_read_only_keeps_what_was_done(
    s3, ray_on_s3, finished_few, tmp_path, capsys
):
    output = f"s3://{BUCKET}/readonly"
    job = write_job(tmp_path, **FEW, output=output)
    s3.shards_allowed = 9
    process = start(job)  # it cannot take its claim away; that it has ended shows
    _, shown = process.communicate(timeout=240)
    assert process.returncode == 3, shown
    message = one_message(shown)
    assert f"cannot write {output}/" in message
    assert "PermissionError: Access Denied" in message
    s3.shards_allowed = None
    n_done = sound_shards(output)
    assert n_done == 9
    assert main([str(job)]) == 0
    assert f"{n_done} of {N_SHARDS} shards are there already" in capsys.readouterr().out
    assert same_results(output, finished_few)


@pytest.mark.parametrize("where", ["the bucket is read-only", "no such bucket", "no credentials"])
def test_storage_that_was_never_to_be_written_is_a_wrong_input(
    s3, tmp_path, capsys, monkeypatch, where
):
    output = f"s3://{BUCKET}/never"
    cause = "PermissionError: Access Denied"
    if where == "the bucket is read-only":
        s3.shards_allowed = 0
    elif where == "no such bucket":
        output = "s3://elsewhere/never"
        cause = "bucket does not exist"
    else:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        fsspec.filesystem("s3").clear_instance_cache()
        cause = "credentials"
    assert main([str(write_job(tmp_path, **FEW, output=output))]) == 2
    message = one_message(capsys.readouterr().err)
    assert message.startswith(f"shapray: output: cannot write {output}/")
    assert cause in message
    monkeypatch.undo()
    fsspec.filesystem("s3").clear_instance_cache()
    assert fsspec.filesystem("s3").find(f"{BUCKET}/never") == []


def test_images_without_credentials_are_a_wrong_input(s3, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    fsspec.filesystem("s3").clear_instance_cache()
    job = write_job(tmp_path, data__calibration__path=f"s3://{BUCKET}/digits.parquet")
    assert main([str(job)]) == 2
    fsspec.filesystem("s3").clear_instance_cache()
    message = one_message(capsys.readouterr().err)
    assert "data.calibration.path: cannot open s3://bucket/digits.parquet" in message
    assert "credentials" in message


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own; the function returned sets its size."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system")

    def resize(size: str) -> None:
        subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)

    yield folder, resize
    subprocess.run(["umount", str(folder)], check=True)


def test_what_does_not_fit_on_the_disk_leaves_nothing_behind(small_disk):
    folder, _ = small_disk
    store = RunDirectory(str(folder / "out"))
    store.publish("shards/fits", b"x" * 2**15)
    with pytest.raises(StorageError, match=r"cannot write .*/shards/large: .*No space left"):
        store.publish("shards/large", b"x" * 2**17)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["fits"]


def test_a_full_disk_keeps_what_was_done(in_process, finished_few, tmp_path, capsys, small_disk):
    folder, resize = small_disk
    job = str(write_job(tmp_path, **FEW, output=str(folder / "out")))
    assert main([job]) == 3
    message = one_message(capsys.readouterr().err)
    assert f"cannot write {folder}/out/" in message
    assert "No space left on device" in message
    assert 2 < sound_shards(str(folder / "out")) < N_SHARDS
    before = shards(folder / "out")
    resize("16m")
    assert main([job]) == 0
    assert re.search(rf"\d+ of {N_SHARDS} shards are there already", capsys.readouterr().out)
    assert before.items() <= shards(folder / "out").items()  # none was computed again
    assert results(folder / "out") == results(finished_few)


def test_a_server_that_stumbles_is_asked_again(tmp_path):
    file = REPOSITORY / "jobs/data/digits_cnn.safetensors"
    stumbles = ["503", "silence", "429", "silence", "500"]

    class Stumbling(SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(file.parent))

        def do_GET(self):
            if not stumbles:
                super().do_GET()
            elif (answer := stumbles.pop()) != "silence":
                self.send_error(int(answer))

        def log_message(self, format, *args):
            """Nothing: pytest shows what went wrong."""

    server = QuietServer(("127.0.0.1", 0), Stumbling)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    found = load_weights(f"http://127.0.0.1:{server.server_port}/{file.name}")
    assert stumbles == []
    expected = load_weights(str(file))
    assert found.keys() == expected.keys()
    with pytest.raises(JobError, match=r"nothing\.pt: no such file"):  # at once
        load_weights(f"http://127.0.0.1:{server.server_port}/nothing.pt")
    server.shutdown()
    server.server_close()
