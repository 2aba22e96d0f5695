"""Bundles of one call that ask a runtime something."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import onnx_ir as ir

from crelu_deploy.bundle import MODEL, SAMPLES, Bundle
from crelu_deploy.manifest import FORMAT
from crelu_deploy.runner import TensorSpec
from crelu_deploy.samples import Sample, save_samples
from crelu_deploy.sites import find_sites
from crelu_deploy.writing import save_model


def write_probe(path: Path, network: ir.Model, sample: Sample) -> Bundle:
    """Write a bundle without a source in a new folder; its inputs have the sample's shapes."""
    path.mkdir()
    save_samples(path / SAMPLES, (sample,))
    bundle = Bundle(path, {"format": FORMAT, "files": {}})
    specs = [TensorSpec(name, x.dtype.name, x.shape) for name, x in sample.inputs.items()]
    bundle.record(
        (*save_model(network, path / MODEL), path / SAMPLES),
        source=None,
        inputs=[asdict(spec) for spec in specs],
        outputs=list(sample.outputs),
        sites=[asdict(site) for site in find_sites(network)],
        targets={},
    )
    return bundle
