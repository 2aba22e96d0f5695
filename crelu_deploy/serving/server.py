"""A Triton server as a child of this process: started, awaited, and ended whatever happens."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from crelu_deploy.errors import BackendUnavailable, BuildError
from crelu_deploy.serving.environment import Environment

LOOPBACK = "127.0.0.1"
PATIENCE = 10
"""Seconds that a server has for the requests it is working on when it is to end."""

_POLL = 0.1  # seconds between two looks
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of linux/prctl.h


@dataclass(frozen=True)
class Address:
    """Where a server listens.

    Attributes:
        host: Name or number of an interface of this machine.
        http: Port of the HTTP protocol.
        grpc: Port of the gRPC protocol.
        metrics: Port of the metrics, in Prometheus' format.
    """

    host: str = LOOPBACK
    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002

    @property
    def urls(self) -> dict[str, str]:
        """What to give to a client, by protocol."""
        return {
            "http": f"http://{self.host}:{self.http}",
            "grpc": f"{self.host}:{self.grpc}",
            "metrics": f"http://{self.host}:{self.metrics}/metrics",
        }

    def check(self) -> None:
        """Refuse ports that cannot be listened on.

        Raises:
            BackendUnavailable: Two are the same, one is in use, or the host is not of this machine.
        """
        ports = {"http": self.http, "grpc": self.grpc, "metrics": self.metrics}
        if len(set(ports.values())) < len(ports):
            raise BackendUnavailable(f"the ports must differ, got {', '.join(map(str, ports))}")
        for name, port in ports.items():
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((self.host, port))
                except OSError as error:
                    raise BackendUnavailable(
                        f"port {port} on {self.host} cannot be used: {error.strerror or error}; "
                        f"choose another with --{name}-port"
                    ) from error


class Server:
    """A running server; ``serve`` makes it.

    Attributes:
        address: Where it listens.
        log: The file that its own messages go to.
    """

    def __init__(self, process: subprocess.Popen[bytes], address: Address, log: Path) -> None:
        self.address = address
        self.log = log
        self._process = process

    def await_ready(self) -> None:
        """Return when all models are loaded and every port answers; metrics come last.

        Raises:
            BuildError: The server ended, with the error that it gave.
        """
        urls = self.address.urls
        while not (_answers(f"{urls['http']}/v2/health/ready") and _answers(urls["metrics"])):
            if self._process.poll() is not None:
                raise BuildError(f"the Triton server did not start: {last_error(self.log)}")
            time.sleep(_POLL)

    def wait(self) -> None:
        """Return never, unless interrupted.

        Raises:
            BuildError: The server ended by itself.
        """
        self._process.wait()
        raise BuildError(
            f"the Triton server ended with code {self._process.returncode}: {last_error(self.log)}"
        )

    def stop(self) -> None:
        """End the server and whatever it started, politely first."""
        try:
            self._process.terminate()
            self._process.wait(PATIENCE + 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@contextmanager
def serve(
    repository: Path,
    models: Sequence[str],
    environment: Environment,
    address: Address,
    *,
    verbose: bool = False,
) -> Iterator[Server]:
    """Start a server on some models of a repository; it is ended with the block.

    Args:
        repository: The folder of the models.
        models: Those to load.
        environment: Where the server is.
        address: Where it listens.
        verbose: Let its messages go to this process' stderr too.

    Raises:
        BackendUnavailable: A port cannot be used.
        BuildError: The server does not start.
    """
    address.check()
    with tempfile.TemporaryDirectory(prefix="crelu-serve-") as name:
        folder, log = Path(name), Path(name) / "server.log"
        # Models import from the backend's folder, whatever PYTHONPATH says.
        package = Path(__file__).resolve().parent.parent
        _link(folder / "backends" / "python", (*environment.backend, package))
        arguments = _arguments(repository, folder / "backends", models, address)
        with log.open("wb") as stream:
            process = _start(environment, arguments, None if verbose else stream)
        server = Server(process, address, log)
        try:
            server.await_ready()
            yield server
        finally:
            server.stop()


def _start(
    environment: Environment, arguments: Sequence[str], stream: BinaryIO | None
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [environment.server, *arguments],
        env=environment.variables,
        stdin=subprocess.DEVNULL,
        stdout=2 if stream is None else stream,  # results alone go to stdout
        stderr=stream,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _link(folder: Path, files: Sequence[Path]) -> None:
    folder.mkdir(parents=True)
    for file in files:
        (folder / file.name).symlink_to(file.resolve())


def _arguments(
    repository: Path, backends: Path, models: Sequence[str], address: Address
) -> list[str]:
    return [
        f"--model-repository={repository}",
        f"--backend-directory={backends}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in models),
        f"--http-address={address.host}",
        f"--http-port={address.http}",
        f"--grpc-address={address.host}",
        f"--grpc-port={address.grpc}",
        f"--metrics-address={address.host}",
        f"--metrics-port={address.metrics}",
        f"--exit-timeout-secs={PATIENCE}",
    ]


def _end_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed, which could not do it then."""
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGTERM, 0, 0, 0)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:  # not listening yet, or not ready
        return False


def last_error(log: Path) -> str:
    """Return the message that says why a server ended, from its log."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for pattern in (r" is at UNAVAILABLE state: (.*)", r"^error: (.*)", r"^E\d.*?\] (.*)"):
        if found := re.findall(pattern, text, re.MULTILINE):
            return str(found[-1]).strip(' ;"')
    return "it said nothing of it; see its messages with -v"
