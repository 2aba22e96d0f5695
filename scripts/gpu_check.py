"""Everything that only a GPU can show, in one run: one JSON file, one table.

Usage: gpu_check.py [--dry-run] [--seconds 450] [--json FILE]

It runs from a source tree and needs torch, onnx and onnxscript; whatever else is missing is a row
that says so. ``--dry-run`` goes the same way on the CPU, with one small network. Exit status 1:
some result was wrong.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gpu_cases
import gpu_fused
import gpu_kernel
import torch
from gpu_rows import WRONG, Clock, collect, table

from crelu_deploy.environment import environment


def where(device: torch.device) -> dict[str, object]:
    """Return hardware and versions."""
    found = environment(torch.get_num_threads())
    if device.type == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        found["gpu"] = subprocess.run(
            query, capture_output=True, text=True, check=True
        ).stdout.strip()
        found["cuda"] = torch.version.cuda
    return found


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry-run", action="store_true", help="on the CPU, one small network")
    parser.add_argument("--seconds", type=float, default=450, help="start no check after this time")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), help="where to write")
    return parser.parse_args()


def _say(text: str) -> None:
    print(f"... {text}", file=sys.stderr)


def main() -> int:
    """Run the checks; return the exit status."""
    given = arguments()
    if not given.dry_run and not torch.cuda.is_available():
        print("error: PyTorch finds no CUDA device; use --dry-run on the CPU", file=sys.stderr)
        return 1
    device = torch.device("cpu" if given.dry_run else "cuda")
    with tempfile.TemporaryDirectory() as folder:
        first, rest = gpu_cases.checks(device, Path(folder), dry=given.dry_run)
        checks = [*gpu_kernel.checks(device), *first, *gpu_fused.checks(device), *rest]
        rows = collect(checks, Clock(given.seconds), _say)
    result = {"environment": where(device), "rows": [asdict(row) for row in rows]}
    given.json.write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows))
    return 1 if any(row.status == WRONG for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
