"""Runs the worker that builds an engine, and reads what it writes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crelu_deploy.backends.engine_progress import MARK
from crelu_deploy.errors import BuildError
from crelu_deploy.targets import Progress, silent

WORKER = "crelu_deploy.backends.engine_worker"


def run_worker(job: Mapping[str, Any], progress: Progress = silent) -> dict[str, Any]:
    """Run one build in a process of its own and return what it says of the engine.

    Args:
        job: What ``make_job`` returns.
        progress: Told the finished share.

    Raises:
        BuildError: It failed or crashed, with the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, answer = Path(folder) / "job.json", Path(folder) / "answer.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        command = [sys.executable, "-m", WORKER, str(file), str(answer)]
        status, last = _watch(command, progress, verbose=job["verbose"])
        if status:
            raise BuildError(f"{job['name']} {_ending(status)}: {last}")
        told: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
        return told


def _watch(command: Sequence[str], progress: Progress, *, verbose: bool) -> tuple[int, str]:
    """Run a command; return its status, and the last line that it wrote and is no progress."""
    last = "no message"
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                if line.startswith(MARK):
                    progress(line.removeprefix(MARK).strip())
                    continue
                last = line.strip() or last
                if verbose:
                    sys.stderr.write(line)
        except BaseException:
            process.kill()
            raise
    return process.returncode, last


def _ending(status: int) -> str:
    return "refuses it" if status > 0 else f"crashed on it ({signal.Signals(-status).name})"
