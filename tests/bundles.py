"""A small bundle made without PyTorch: one convolution, one site, two samples; and its noise."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from graphs import Case, model, values

from crelu_deploy import load, op
from crelu_deploy.bundle import MODEL, SAMPLES, Bundle
from crelu_deploy.manifest import FORMAT
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, save_samples
from crelu_deploy.sites import find_sites
from crelu_deploy.writing import save_model

SPEC = TensorSpec("x", "float32", ("N", 2, 3, 3))


def write_bundle(path: Path) -> Bundle:
    """Write a bundle whose network computes ``crelu(conv(x))`` with a 1x1 kernel, 2 -> 4 maps."""
    path.mkdir()
    weight, bias = values("w", (4, 2, 1, 1)), values("b", (4,))
    case = Case("z = Conv(x, w, b)", (1, 2, 3, 3), {"w": weight, "b": bias})
    network = model(case)
    files = save_model(network, path / MODEL)
    inputs = [values(f"input {i}", (1 + i, 2, 3, 3)) for i in range(2)]
    maps = [np.einsum("oi,nihw->nohw", weight[:, :, 0, 0], x) + bias[:, None, None] for x in inputs]
    samples = tuple(
        Sample({"x": x}, {"y": op.reference(z)}) for x, z in zip(inputs, maps, strict=True)
    )
    save_samples(path / SAMPLES, samples)
    bundle = Bundle(path, {"format": FORMAT, "files": {}})
    bundle.record(
        (*files, path / SAMPLES),
        source=None,
        inputs=[asdict(SPEC)],
        outputs=["y"],
        sites=[asdict(site) for site in find_sites(network)],
        targets={},
    )
    return bundle


def decibels(bundle: Path, target: str) -> float:
    """Return the ratio of signal to noise of a target with one output, over a bundle's samples."""
    signal = noise = 0.0
    with load(bundle, target, threads=1) as runner:
        for sample in Bundle.open(bundle).samples:
            (actual,), (expected,) = runner(sample.inputs).values(), sample.outputs.values()
            signal += float((expected**2).sum())
            noise += float(((actual - expected) ** 2).sum())
    return float(10 * np.log10(signal / noise))
