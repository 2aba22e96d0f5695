"""The proof of a bundle's targets: when one is built, and again from its file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx_ir as ir

from crelu_deploy.bundle import Bundle
from crelu_deploy.errors import BuildError
from crelu_deploy.modelfile import read_file
from crelu_deploy.precision import TYPES
from crelu_deploy.proof import Proof, SiteProof, prove
from crelu_deploy.targets import BACKENDS, INT8, Target

QUANTIZED = "int8: what is proved is the graph before it was quantised, not the quantised numbers"
"""Why a quantised file is not proved."""


def prove_lowered(bundle: Bundle, target: Target, model: ir.Model) -> Proof:
    """Prove what a target's file is to hold, before it is quantised if it will be.

    Raises:
        BuildError: It does not compute what the network's nodes are defined as.
    """
    proof = prove(bundle.model, model, _reduced(target))
    if proof.refuted:
        raise BuildError(
            f"{bundle.path}: {target} is refuted, nothing was written: {proof.faults[0]}; "
            "this is a fault of crelu-deploy: please report it, and use another lowering"
        )
    quantised = BACKENDS[target.backend].precision == INT8
    return replace(proof, open=QUANTIZED) if quantised else proof


def given(bundle: Bundle) -> Proof:
    """Return the proof of ``model.onnx``, whose nodes define what is to be computed."""
    return Proof({site["name"]: SiteProof() for site in bundle.manifest["sites"]})


def prove_target(bundle: Bundle, target: Target) -> Proof | None:
    """Prove a target that was built from its file; None for one that runs the PyTorch module."""
    backend = BACKENDS[target.backend]
    if not backend.lowered:
        return None
    if backend.precision == INT8:
        return Proof(open=QUANTIZED)
    return prove(bundle.model, read_file(bundle.artifact(target)), _reduced(target))


def _reduced(target: Target) -> ir.DataType | None:
    """Return the type that float32 became in a target's file."""
    backend = BACKENDS[target.backend]
    return TYPES.get(backend.precision) if backend.typed else None


def recorded(proof: Proof) -> dict[str, Any]:
    """Return what a manifest keeps of a proof."""
    return {
        "sites": {name: str(site) for name, site in proof.sites.items()},
        "faults": list(proof.faults),
        "open": proof.open,
    }
