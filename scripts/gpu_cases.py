"""Which networks run in which way on a GPU, the most telling first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from gpu_networks import NETWORKS, Bench, Case, prepared, pytorch
from gpu_onnxruntime import onnxruntime
from gpu_rows import Check, Row
from gpu_tensorrt import LOWERINGS, miscompilations, tensorrt

from crelu_deploy.targets import BACKENDS, CARRIED, ENGINES, PLUGIN

Way = tuple[int, str, Callable[[Bench], Iterator[Row]]]
"""How early it comes, its name, and what gives its rows."""

FIRST, FORMS, SLOW = 0, 1, 2
"""The networks' main figures; all lowerings; what takes minutes for each network."""


def ways(*, cuda: bool, folder: Path) -> list[Way]:
    """Return every way to run a network; CUDA graphs only with ``cuda``."""
    found: list[Way] = [
        (FIRST, "torch eager", partial(pytorch, form="eager")),
        (FIRST, "torch channels_last", partial(pytorch, form="channels_last")),
        (SLOW, "torch compile", partial(pytorch, form="compile")),
    ]
    for lowering in ("plain", "auto", "primitive", "mirror", "fold", "custom op"):
        for graph in (False, True) if cuda else (False,):
            main = (lowering, graph) in (("plain", False), ("auto", True), ("custom op", True))
            run = partial(onnxruntime, lowering=lowering, cuda_graph=graph)
            name = f"ort {lowering}{', CUDA graph' if graph else ''}"
            found.append((FIRST if main else FORMS, name, run))
    for lowering in LOWERINGS:
        main = lowering in ("auto", PLUGIN, CARRIED)
        run = partial(tensorrt, lowering=lowering, folder=folder)
        found.append((FIRST if main else FORMS, f"trt {lowering}", run))
    return found


def _checks(case: Case, folder: Path) -> list[tuple[int, Check]]:
    """Return the checks of one case, which share its input and reference, with their ranks."""
    bench: list[Bench] = []

    def on_bench(way: Callable[[Bench], Iterator[Row]]) -> Iterator[Row]:
        if not bench:
            bench.append(prepared(case))
        return way(bench[0])

    later = (case.batch > 1) + 2 * (case.dtype != torch.float16)
    return [
        (rank + later, (case.label, name, partial(on_bench, way)))
        for rank, name, way in ways(cuda=case.device.type == "cuda", folder=folder)
    ]


def checks(device: torch.device, folder: Path, *, dry: bool) -> tuple[list[Check], list[Check]]:
    """Return the main checks of every network at batch 1, and the others by rank.

    Args:
        device: Where they run.
        folder: For engines and what their builder keeps.
        dry: Take one small network.
    """
    cases = [Case("convpool-c-crelu", 1, torch.float32, device, dry)] if dry else _cases(device)
    ranked = [pair for case in cases for pair in _checks(case, folder)]
    lowest = min(rank for rank, _ in ranked)
    ranked.sort(key=lambda pair: pair[0])
    first = [check for rank, check in ranked if rank == lowest]
    rest = [check for rank, check in ranked if rank > lowest]
    return first, [*_known(dry=dry), *rest]


def _known(*, dry: bool) -> list[Check]:
    """Return a check of each runtime that compiles networks: what it is known to compile wrong."""
    asked = ("ort-cpu",) if dry else [b.name for b in BACKENDS.values() if b.module in ENGINES]
    return [("miscompilations", name, partial(miscompilations, name)) for name in asked]


def _cases(device: torch.device) -> list[Case]:
    return [
        Case(name, batch, dtype, device, dry=False)
        for name, (_, batches) in NETWORKS.items()
        for batch in batches
        for dtype in (torch.float16, torch.float32)
    ]
