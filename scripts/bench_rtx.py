"""Build every known network, and trained ones, as TensorRT-RTX engines without a GPU: one table.

Per network the engine's size in float32 and float16, the seconds that all builds took, and how many
pointwise kernels a CReLU site costs in each lowering: the difference to the engine with the fewest,
over the number of sites. No engine is run and nothing is timed but the build. Weights of the known
networks are random. Each network has a process of its own.
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

FORMS = ("primitive", "mirror", "fold", "auto")
BACKENDS = ("trt-rtx", "trt-rtx-fp16")
INPUTS = {"faceboxes": "1x3x256x256"}
"""Smaller inputs than an architecture's own, to keep the time in bounds."""

Result = dict[str, Any]


def build(name: str, shape: str) -> Result:
    """Export one network, known by name or in a file, and build all its engines.

    Args:
        name: An architecture, or a checkpoint's path.
        shape: Of its input; empty for the architecture's own.
    """
    import torch

    from crelu_deploy import export, pipeline
    from crelu_deploy.backends.engines import Note, engine_file, note_file
    from crelu_deploy.models import build as make
    from crelu_deploy.models import find
    from crelu_deploy.targets import Target

    start = time.perf_counter()
    torch.manual_seed(0)
    known = not Path(name).is_file()
    model = make(name).eval() if known else name
    shape = shape or ("x".join(map(str, find(name).input_shape)) if known else "")
    targets = [Target(backend, form) for backend in BACKENDS for form in FORMS]
    with tempfile.TemporaryDirectory() as folder:
        bundle = export(model, Path(folder) / "b", inputs=[shape] if shape else [], samples=1)
        done = pipeline.build(bundle, targets)
        files = {t: engine_file(bundle, t) for t in targets}
        notes = {t: Note.read(note_file(file)) for t, file in files.items() if file.is_file()}
        return {
            "name": Path(name).name,
            "sites": len(bundle.manifest["sites"]),
            "errors": {str(b.target): b.error for b in done if b.error},
            "lowered": {str(b.target): dict(b.lowerings) for b in done},
            "pointwise": {str(t): len(note.pointwise) for t, note in notes.items()},
            "megabytes": {str(t): files[t].stat().st_size / 1e6 for t in notes},
            "seconds": time.perf_counter() - start,
            "building": sum(b.seconds for b in done),
        }


def apart(name: str, shape: str) -> Result:
    """Do the same in a process of its own; one that fails is a row that says so."""
    command = [sys.executable, "-W", "ignore", __file__, "--one", name, "--input", shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return {"name": Path(name).name, "errors": {"export": last}}
    result: Result = json.loads(done.stdout.splitlines()[-1])
    return result


def table(rows: list[Result]) -> Table:
    """Return the rows as a table: pointwise kernels per site more than in the leanest engine."""
    made = Table(title="TensorRT-RTX, pointwise kernels per site", title_justify="left", box=None)
    made.add_column("network", no_wrap=True)
    heads = [f"{b.removeprefix('trt-rtx') or '-fp32'}:{f}"[1:] for b in BACKENDS for f in FORMS]
    for head in ("sites", *heads, "MB", "seconds"):
        made.add_column(head, justify="right")
    made.add_column("built")
    for row in rows:
        if "sites" not in row:
            made.add_row(row["name"], *([""] * (len(heads) + 3)), row["errors"]["export"])
            continue
        cells = [_per_site(row, f"{b}:{f}") for b in BACKENDS for f in FORMS]
        size = "/".join(f"{row['megabytes'].get(f'{b}:auto', 0):.1f}" for b in BACKENDS)
        total = len(BACKENDS) * len(FORMS)
        verdict = f"{total - len(row['errors'])} of {total}"
        made.add_row(
            row["name"], str(row["sites"]), *cells, size, f"{row['building']:.0f}", verdict
        )
    return made


def _per_site(row: Result, target: str) -> str:
    found, backend = row["pointwise"], target.partition(":")[0]
    if target not in found:
        return "-"
    least = min(count for name, count in found.items() if name.startswith(f"{backend}:"))
    return f"{(found[target] - least) / max(row['sites'], 1):.2f}"


def main() -> int:
    """Print a line per network on stderr as it is done, and the table on stdout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("networks", nargs="*", help="names or checkpoints (default: all names)")
    parser.add_argument("--input", default="", help="shape of the input, where not the usual one")
    parser.add_argument(
        "--json", type=Path, help="also write the rows to this file, each when it is there"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(build(options.one, options.input)))
        return 0
    from crelu_deploy.models import MODELS

    rows = []
    for name in options.networks or MODELS:
        rows.append(apart(name, options.input or INPUTS.get(name, "")))
        print(f"... {name}: {'FAILED' if rows[-1]['errors'] else 'ok'}", file=sys.stderr)
        if options.json:
            options.json.write_text(json.dumps(rows, indent=2))
    Console(highlight=False, width=180).print(table(rows))
    return 1 if any(row["errors"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
