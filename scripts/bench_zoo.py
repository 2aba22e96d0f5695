"""Export every known architecture, lower it in every way, verify each on ONNX Runtime: one table.

Weights are random, so this checks the graphs and their speed and says nothing of accuracy. Networks
are done one at a time, each in a process of its own, which bounds the memory; a bundle is deleted
once its row is there. Figures are milliseconds of one call, the median of interleaved runs; what
failed to verify has no figure.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

INPUTS = {"faceboxes": "1x3x256x256"}
"""Smaller inputs than an architecture's own, to keep the time in bounds."""

Result = dict[str, Any]


def measure(name: str, seconds: float) -> Result:
    """Export one architecture, then build, verify and time all lowerings and the automatic mix."""
    import torch

    from crelu_deploy import bench, export
    from crelu_deploy.latency import Effort
    from crelu_deploy.lowerings import LOWERINGS
    from crelu_deploy.models import build, find

    start = time.perf_counter()
    torch.manual_seed(0)
    shape = INPUTS.get(name, "x".join(map(str, find(name).input_shape)))
    targets = [f"ort-cpu:{lowering}" for lowering in (*LOWERINGS, "auto")]
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(build(name).eval(), Path(folder) / "bundle", inputs=[shape])
        found = bench(bundle, targets, effort=Effort(seconds=seconds))
    return {
        "name": name,
        "sites": len(bundle.manifest["sites"]),
        "input": shape,
        "verified": {str(v.target): v.passed for v in found.verifications},
        "reasons": {str(v.target): v.error for v in found.verifications if not v.passed},
        "median_ms": {str(row.target): row.latency.median for row in found.rows},
        "seconds": time.perf_counter() - start,
    }


def apart(name: str, seconds: float) -> Result:
    """Do the same in a process of its own; one that fails is a row that says so."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--seconds", str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"name": name, "error": last}
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def passed(row: Result) -> bool:
    """Return whether every target of a row was verified."""
    return "error" not in row and all(row["verified"].values())


def table(rows: list[Result]) -> Table:
    """Return the rows as a table, milliseconds per lowering."""
    targets = list(next((row["verified"] for row in rows if "verified" in row), {}))
    made = Table(title="ort-cpu, batch 1, ms", title_justify="left", box=None)
    made.add_column("network", no_wrap=True)
    for head in ("sites", *(t.removeprefix("ort-cpu:") for t in targets), "seconds"):
        made.add_column(head, justify="right")
    made.add_column("verified")
    for row in rows:
        if "error" in row:
            made.add_row(row["name"], *([""] * (len(targets) + 2)), row["error"])
            continue
        cells = [f"{row['median_ms'][t]:.2f}" if t in row["median_ms"] else "-" for t in targets]
        count = sum(row["verified"].values())
        verdict = f"{count} of {len(row['verified'])}"
        made.add_row(row["name"], str(row["sites"]), *cells, f"{row['seconds']:.0f}", verdict)
    return made


def main() -> int:
    """Print a line per network on stderr as it is done, and the table on stdout."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", help="names as in crelu zoo (default: all)")
    parser.add_argument("--seconds", type=float, default=3.0, help="to time each network")
    parser.add_argument("--json", type=Path, help="also write the rows to this file")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.seconds)))
        return 0
    from crelu_deploy.models import MODELS

    rows = []
    for name in options.models or MODELS:
        rows.append(apart(name, options.seconds))
        print(f"... {name}: {'ok' if passed(rows[-1]) else 'FAILED'}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))
    Console(highlight=False, width=140).print(table(rows))
    return 0 if all(map(passed, rows)) else 1


if __name__ == "__main__":
    sys.exit(main())
