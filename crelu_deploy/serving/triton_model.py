"""A model of Triton's Python backend that runs the Runner of the bundle beside it.

``crelu package`` copies this file as ``model.py``. The server's Python needs crelu-deploy and the
target's runtime.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton  # the server's own

from crelu_deploy import load

Array = np.ndarray[Any, Any]
Feeds = dict[str, Array]


class TritonPythonModel:
    """What the Python backend calls; one of it lives in a process of its own per instance."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the target that the configuration names."""
        config = json.loads(args["model_config"])
        self._largest = config["max_batch_size"]
        self._joined: Feeds = {}
        folder = Path(args["model_repository"]) / args["model_version"] / "bundle"
        target = config["parameters"]["target"]["string_value"]
        # One copy has every core. Several share the cores best where each keeps to one thread.
        threads = 1 if config["instance_group"][0]["count"] > 1 else None
        try:
            self._runner = load(folder, target, threads=threads)
        except Exception as error:
            raise triton.TritonModelException(str(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer every request; those of one call are run as one batch."""
        feeds = [self._feeds(request) for request in requests]
        try:
            found = self._batch(feeds) if self._largest else [self._runner(f) for f in feeds]
        except Exception as error:
            failure = triton.TritonError(f"{type(error).__name__}: {error}")
            return [triton.InferenceResponse(error=failure) for _ in requests]
        return [
            triton.InferenceResponse([triton.Tensor(name, array) for name, array in named.items()])
            for named in found
        ]

    def finalize(self) -> None:
        """Free what the runtime holds."""
        self._runner.close()

    def _feeds(self, request: Any) -> Feeds:
        names = (spec.name for spec in self._runner.inputs)
        return {n: triton.get_input_tensor_by_name(request, n).as_numpy() for n in names}

    def _batch(self, feeds: Sequence[Feeds]) -> list[Feeds]:
        """Run the requests' rows in one call, and give each request its own."""
        if len(feeds) == 1:
            return [self._runner(feeds[0])]
        first = self._runner.inputs[0].name
        ends = np.cumsum([len(f[first]) for f in feeds])[:-1]
        joined = {name: self._join(name, [f[name] for f in feeds]) for name in feeds[0]}
        split = {name: np.split(array, ends) for name, array in self._runner(joined).items()}
        return [{name: parts[i] for name, parts in split.items()} for i in range(len(feeds))]

    def _join(self, name: str, parts: Sequence[Array]) -> Array:
        """Return the rows of an input in one array, in memory that every batch has again.

        New memory for each, which the system clears page by page, takes longer than the copy.
        """
        rows, shape = sum(map(len, parts)), parts[0].shape[1:]
        kept = self._joined.get(name)
        if kept is None or kept.shape[1:] != shape:
            kept = self._joined[name] = np.empty((self._largest, *shape), parts[0].dtype)
        return np.concatenate(parts, out=kept[:rows])
