"""Scoring on two Ray nodes of this machine, while actors, nodes and drivers are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from scoring_data import command, expected, noisy_digits, read_rows

pytest.importorskip("ray", reason="crelu score is not installed: crelu-deploy[ray]")
pytest.importorskip("pyarrow")
pytest.importorskip("onnxruntime")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(400),
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    # Ray leaves sockets and files of its own open.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]

ROWS, SHARD, BATCH = 20_000, 200, 32
SHARDS = ROWS // SHARD


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray]:
    x = noisy_digits(ROWS)
    path = tmp_path_factory.mktemp("many") / "digits.npz"
    np.savez(path, input=x)
    return path, x


@pytest.fixture
def cluster() -> Iterator[object]:
    """Two nodes of one core each; the first is the head."""
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 100 << 20}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        made.add_node(**node)
        made.wait_for_nodes()
        yield made
    finally:
        made.shutdown()


def wait(condition: Callable[[], bool], driver: subprocess.Popen[str]) -> None:
    """Wait until a condition holds, while the driver runs."""
    end = time.monotonic() + 120
    while not condition():
        assert driver.poll() is None, driver.communicate()
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def finished(out: Path) -> dict[str, int]:
    """Return the finished shards and when each was written."""
    return {file.name: file.stat().st_mtime_ns for file in out.glob("part-*")}


def raylet(node) -> int:
    return node.all_processes["raylet"][0].process.pid


def actors_of(parent: int) -> list[int]:
    """Return the processes of a node's actors."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name = (folder / "cmdline").read_text()
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # It has just ended.
            continue
        if "MapWorker" in name and int(fields[1]) == parent:
            found.append(int(folder.name))
    return found


def check_rows(bundle: Path, out: Path, data: tuple[Path, np.ndarray]) -> None:
    """Every input is there exactly once, in its file, with the runner's bits."""
    path, x = data
    rows = read_rows(out)
    assert len(finished(out)) == SHARDS
    assert rows["index"] == list(range(ROWS))
    assert set(rows["path"]) == {str(path)}
    assert not any(rows["error"])
    wanted = expected(bundle, x, BATCH, SHARD)
    np.testing.assert_array_equal(np.array(rows["logits"], np.float32), wanted)
    assert [file.name for file in out.iterdir() if file.name.startswith(".")] == []


def start(*arguments: object) -> subprocess.Popen[str]:
    line = command(*arguments, "--shard", SHARD, "--batch", BATCH)
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_an_actor_and_a_node_are_killed(shared_bundle, data, cluster, tmp_path):
    out = tmp_path / "out"
    (head,) = (node for node in cluster.list_all_nodes() if node.head)
    (other,) = (node for node in cluster.list_all_nodes() if not node.head)
    driver = start(shared_bundle, data[0], "-o", out, "--address", cluster.address)
    try:
        wait(lambda: len(finished(out)) > SHARDS // 10, driver)
        wait(lambda: bool(actors_of(raylet(head)) and actors_of(raylet(other))), driver)
        os.kill(actors_of(raylet(head))[0], signal.SIGKILL)
        wait(lambda: len(finished(out)) > SHARDS // 3, driver)
        cluster.remove_node(other, allow_graceful=False)
        assert len(finished(out)) < SHARDS
        stdout, stderr = driver.communicate(timeout=240)
    finally:
        driver.kill()
    assert driver.returncode == 0, stderr
    assert stdout.splitlines()[0] == f"scored   {ROWS} rows in {SHARDS} files"
    assert all(line.startswith("... ") for line in stderr.splitlines()), stderr
    check_rows(shared_bundle, out, data)


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_a_driver_is_killed_and_run_again(shared_bundle, data, tmp_path, kill):
    out = tmp_path / "out"
    driver = start(shared_bundle, data[0], "-o", out)
    try:
        wait(lambda: len(finished(out)) > SHARDS // 5, driver)
        driver.send_signal(kill)
        _, stderr = driver.communicate(timeout=60)
    finally:
        driver.kill()
    assert driver.returncode == (130 if kill == signal.SIGINT else -kill), stderr
    before = finished(out)
    assert len(before) < SHARDS
    again = start(shared_bundle, data[0], "-o", out)
    stdout, stderr = again.communicate(timeout=240)
    assert again.returncode == 0, stderr
    assert "of them were there" in stdout
    after = finished(out)
    assert {name: after[name] for name in before} == before
    check_rows(shared_bundle, out, data)


def test_two_drivers_do_not_share_a_folder(shared_bundle, data, tmp_path):
    out = tmp_path / "out"
    driver = start(shared_bundle, data[0], "-o", out)
    try:
        wait(lambda: len(finished(out)) > 1, driver)
        second = start(shared_bundle, data[0], "-o", out)
        _, stderr = second.communicate(timeout=60)
    finally:
        driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    assert second.returncode == 1
    assert "another process is writing to it" in stderr
