"""An actor pool of Ray Data: shards in, what became of them out.

Only the names of the inputs and a line per finished shard pass through Ray. Each actor reads the
inputs of its shard and writes its outputs itself, so nothing is copied through the object store
and the driver's memory does not grow with the data.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data
from ray.exceptions import RayError

from crelu_deploy.errors import BackendUnavailable, BuildError, DeployError
from crelu_deploy.scoring.output import Scored
from crelu_deploy.scoring.shard import Job, Scorer, Shard
from crelu_deploy.targets import Options

BLOCKS = 2000
"""Units of scheduling at most: the driver keeps an entry for each."""

STORE_BYTES = 128 << 20
"""The object store of a local Ray, which holds names only."""

REACH_SECONDS = 5.0


@dataclass(frozen=True)
class Share:
    """What one actor takes of its machine, in cores and GPUs; Ray hands out no more than there is.

    One core runs the network on one thread, the others decode ahead of it.
    """

    cpus: int = 1
    gpus: float = 0.0


class _Actor:
    """Holds one open target; what a user can mend is an answer, not a crash to be retried."""

    def __init__(self, job: Job) -> None:
        self.scorer: Scorer | None = None
        self.error: DeployError | None = None
        try:
            self.scorer = Scorer(job)
        except DeployError as error:
            self.error = error

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        answers = [self._answer(pickle.loads(shard)) for shard in rows["shard"]]
        return {"answer": np.array([pickle.dumps(a) for a in answers], object)}

    def _answer(self, shard: Shard) -> Scored | DeployError:
        if self.scorer is None:
            return self.error or BuildError("the target could not be opened")
        try:
            return self.scorer.score(shard)
        except DeployError as error:
            return error


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """Use the Ray at an address, or one of this machine that ends with the block.

    Raises:
        BackendUnavailable: There is none, or it is of another version.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else it warns on stderr of every actor that can be started again.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address is None:
        cores = Options().cores
        local = {"num_cpus": cores, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        options |= local
    else:
        _reach(address)
        options["address"] = address
    # Ray prints to stdout of actors and machines that it lost: results alone go there.
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        try:
            with _no_stderr():
                ray.init(**options)
        except (RayError, OSError, RuntimeError, ValueError) as error:
            where = address or "this machine"
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise BackendUnavailable(f"{where}: Ray does not start: {said}") from error
        try:
            _hush()
            yield
        finally:
            ray.shutdown()


@contextmanager
def _no_stderr() -> Iterator[None]:
    """Drop what compiled code writes to stderr, around Python: that it read a variable above."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def _reach(address: str) -> None:
    """Refuse an address that nobody listens at, which Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not (colon and port.isdecimal()):
        raise BackendUnavailable(f"--address {address}: expected HOST:PORT or auto")
    try:
        socket.create_connection((host, int(port)), REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise BackendUnavailable(
            f"--address {address}: nobody answers there ({error}); start one with: ray start --head"
        ) from error


def _hush() -> None:
    """Keep Ray's own progress and logs off the terminal."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)


def actors(share: Share) -> int:
    """Return how many actors fit on all machines together.

    Raises:
        BackendUnavailable: Not one.
    """
    there = ray.cluster_resources()
    wanted = {"CPU": float(share.cpus), "GPU": share.gpus}
    fits = min(int(there.get(kind, 0.0) / n) for kind, n in wanted.items() if n)
    if not fits:
        missing = next(kind for kind, n in wanted.items() if there.get(kind, 0.0) < n)
        raise BackendUnavailable(
            f"an actor takes {wanted[missing]:g} {missing}, Ray has {there.get(missing, 0.0):g}; "
            "ask for less with --cpus or --gpus, or add machines"
        )
    return fits


def score_shards(job: Job, shards: Sequence[Shard], share: Share) -> Iterator[Scored]:
    """Score shards on all machines; yield each when its file is there, in any order.

    An actor or a machine that is lost is replaced, and what it had begun is done again.

    Raises:
        DeployError: What no other actor could do better.
    """
    rows = [{"shard": pickle.dumps(shard)} for shard in shards]
    count = min(actors(share), len(rows))
    answers = ray.data.from_items(rows, override_num_blocks=min(len(rows), BLOCKS)).map_batches(
        _Actor,
        fn_constructor_kwargs={"job": job},
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=count, initial_size=count),
        num_cpus=share.cpus,
        num_gpus=share.gpus,
    )
    try:
        for row in answers.iter_rows():
            answer = pickle.loads(row["answer"])
            if isinstance(answer, DeployError):
                raise answer
            yield answer
    except RayError as error:
        # It ends with the cause, behind the traceback of the actor.
        cause = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise BuildError(f"Ray gave up: {cause}; finished shards stay, run this again") from error
