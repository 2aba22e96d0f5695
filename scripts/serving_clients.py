"""Clients of a Triton server: HTTP, one row a request, every answer compared."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import np_to_triton_dtype

from crelu_deploy import Bundle, load
from crelu_deploy.serving.server import Address

Row = dict[str, np.ndarray]
REGION = "rows"


@dataclass(frozen=True)
class Load:
    """What one client saw.

    Attributes:
        latencies: Seconds of each answered request.
        errors: What went wrong, each kind once.
        wrong: Answers that differ from the Runner's in any bit.
        apart: The largest distance of an answer from the Runner's, over the output's maximum.
    """

    latencies: list[float]
    errors: list[str]
    wrong: int
    apart: float


def rows_of(bundle: Path, target: str) -> list[tuple[Row, Row]]:
    """Return the samples row by row, each with what the Runner makes of it."""
    samples = Bundle.open(bundle).samples
    rows = [
        {name: array[i : i + 1] for name, array in sample.inputs.items()}
        for sample in samples
        for i in range(len(next(iter(sample.inputs.values()))))
    ]
    with load(bundle, target) as runner:
        return [(row, runner(row)) for row in rows]


def clients(
    bundle: Path,
    target: str,
    address: Address,
    name: str,
    number: int,
    seconds: float,
    *,
    shared: bool,
) -> tuple[list[Load], float]:
    """Run many clients, each a thread with a connection of its own.

    Returns:
        What each saw, and the seconds of processor time of them all.
    """
    rows = rows_of(bundle, target)
    with placed(rows, address, shared=shared) as tensors:
        questions = [Question.of(t, wanted) for t, (_, wanted) in zip(tensors, rows, strict=True)]
        with ThreadPoolExecutor(number) as threads:
            start, before = time.perf_counter(), time.process_time()
            work = partial(client, questions, address, name, number, start + seconds)
            return list(threads.map(work, range(number))), time.process_time() - before


@contextlib.contextmanager
def placed(
    rows: list[tuple[Row, Row]], address: Address, *, shared: bool
) -> Iterator[list[list[triton.InferInput]]]:
    """Yield each row's tensors: as part of a request, or where in shared memory they are."""
    if not shared:
        yield [[_tensor(name, array) for name, array in row.items()] for row, _ in rows]
        return
    size = sum(array.nbytes for row, _ in rows for array in row.values())
    block = SharedMemory(create=True, size=size)
    with triton.InferenceServerClient(f"{address.host}:{address.http}") as server:
        server.register_system_shared_memory(REGION, f"/{block.name}", size)
        try:
            yield _fill(block, rows)
        finally:
            server.unregister_system_shared_memory(REGION)
            block.close()
            block.unlink()


def _fill(block: SharedMemory, rows: list[tuple[Row, Row]]) -> list[list[triton.InferInput]]:
    offset, found = 0, list[list[triton.InferInput]]()
    for row, _ in rows:
        found.append([])
        for name, array in row.items():
            block.buf[offset : offset + array.nbytes] = array.tobytes()
            tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
            tensor.set_shared_memory(REGION, array.nbytes, offset)
            found[-1].append(tensor)
            offset += array.nbytes
    return found


@dataclass(frozen=True)
class Question:
    """A request for one row, ready to be sent, and the Runner's answer to it."""

    body: bytes
    header_length: int
    wanted: Row

    @classmethod
    def of(cls, tensors: list[triton.InferInput], wanted: Row) -> Question:
        """Put a row into the form of Triton's HTTP protocol with binary tensors."""
        outputs = [triton.InferRequestedOutput(name) for name in wanted]
        body, length = triton.InferenceServerClient.generate_request_body(tensors, outputs=outputs)
        return cls(bytes(body), length or len(body), wanted)


def client(
    questions: list[Question], address: Address, name: str, step: int, end: float, index: int
) -> Load:
    """Send one request after the other until the time is over."""
    latencies, errors, apart = list[float](), set[str](), list[float]()
    connection = HTTPConnection(address.host, address.http)
    while (sent := time.perf_counter()) < end:
        question = questions[index % len(questions)]
        try:
            answer = ask(connection, name, question)
        except (OSError, RuntimeError) as error:
            errors.add(repr(error))
            continue
        latencies.append(time.perf_counter() - sent)
        apart.append(distance(answer, question.wanted))
        index += step
    connection.close()
    return Load(latencies, sorted(errors), sum(d > 0 for d in apart), max(apart, default=0.0))


def ask(connection: HTTPConnection, name: str, question: Question) -> triton.InferResult:
    """Return the answer to one request.

    Raises:
        RuntimeError: The server refused it.
        OSError: The connection failed.
    """
    length = "Inference-Header-Content-Length"
    headers = {length: str(question.header_length), "Content-Type": "application/octet-stream"}
    connection.request("POST", f"/v2/models/{name}/infer", question.body, headers)
    response = connection.getresponse()
    body = response.read()
    if response.status != 200:
        raise RuntimeError(body.decode(errors="replace"))
    found = int(response.headers[length])
    return triton.InferenceServerClient.parse_response_body(body, header_length=found)


def _tensor(name: str, array: np.ndarray) -> triton.InferInput:
    tensor = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    tensor.set_data_from_numpy(array)
    return tensor


def distance(answer: triton.InferResult, wanted: Row) -> float:
    """Return how far an answer is from the Runner's, over the output's largest value."""
    pairs = [(answer.as_numpy(name), array) for name, array in wanted.items()]
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
