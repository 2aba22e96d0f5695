"""The values behind the sites of a target, judged beside its outputs.

An error of one channel is diluted on its way to the outputs, by every layer that it goes through.
So the first values behind each site are compared too, the outputs of its consumers mostly, each
channel with its own noise. What is expected is what ONNX Runtime computes of the unlowered network
without optimisations. The outputs are judged on a target's file as it is, the values on a copy that
has them as outputs, which may keep a runtime from fusing what it fuses otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from crelu_deploy.accuracy import Comparison, Tolerance, compare, compare_outputs, worst_of
from crelu_deploy.bundle import Bundle
from crelu_deploy.correspondence import Correspondence, consumed, expose
from crelu_deploy.errors import BackendUnavailable, BuildError, UnsupportedModel
from crelu_deploy.locating import arrays, correspondence, reference
from crelu_deploy.results import SiteError
from crelu_deploy.rounding import channel_axis
from crelu_deploy.samples import Array, Arrays, Sample, telling
from crelu_deploy.targets import BACKENDS, FLOAT32, FUNCTION, Options, Target

OPENERS = ("onnxruntime", "openvino")
"""Modules of runtimes that show a value inside when it is made an output of the lowered file."""


@dataclass
class Witness:
    """What the unlowered network computes behind its sites; it is run once for all targets.

    Attributes:
        bundle: Where the network is.
        options: Threads.
    """

    bundle: Bundle
    options: Options

    @cached_property
    def samples(self) -> Mapping[int, Sample]:
        """The samples that are looked at, by number."""
        return telling(self.bundle.samples, self.bundle.searched)

    @cached_property
    def known(self) -> Mapping[int, Arrays]:
        """The network's values for each sample, its outputs among them."""
        model = reference(self.bundle)
        runtime = BACKENDS["ort-cpu"].implementation()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "original.onnx"
            expose(model, consumed(model), path)
            with runtime.open_session(path, self.options, optimise=False) as session:
                return {i: arrays(session(s.inputs)) for i, s in self.samples.items()}

    def distance(self, tolerance: Tolerance | None) -> Comparison:
        """Return how far the unlowered network, run like this, is from PyTorch."""
        return worst_of(
            compare_outputs(
                {name: self.known[i][name] for name in sample.outputs if name in self.known[i]},
                sample.outputs,
                f"model.onnx without optimisations, sample {i} ",
                tolerance,
                sample.floors,
            )
            for i, sample in self.samples.items()
        )

    def judge(
        self, target: Target, tolerance: Tolerance | None = None, bundle: Bundle | None = None
    ) -> tuple[tuple[SiteError, ...], str]:
        """Compare what a built target computes behind its sites.

        Args:
            target: The target; of a reduced precision, of a runtime that does not open the file,
                and of the unlowered network itself nothing is compared.
            tolerance: What counts as equal, instead of the measured noise.
            bundle: Where the target is, where it is in a copy of the bundle.

        Returns:
            The errors of the sites, and in words why there are none where a runtime refuses.

        Raises:
            UnsupportedModel: A file cannot be read, or the noise is not that of this network.
        """
        backend, place = BACKENDS[target.backend], bundle or self.bundle
        opens = backend.module in OPENERS and backend.precision == FLOAT32
        if not opens or target.lowering == FUNCTION:
            return (), ""
        between = _known(correspondence(place, target), place)
        values = {site: between.behind(site) for site in between.lowerings}
        names = {name for behind in values.values() for name in behind}
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "lowered.onnx"
                expose(between.lowered, sorted(names), path)
                found = self._compared(target, path, names, tolerance) if names else {}
            wrong = self.distance(tolerance) if found else None
        except (BuildError, BackendUnavailable) as error:
            return (), f"the values behind its sites were not compared: {error}"
        if wrong is not None and not wrong.passed:
            found = dict.fromkeys(found, wrong)
        return tuple(
            _error(site, lowering, [n for n in values[site] if n in found], found)
            for site, lowering in between.lowerings.items()
        ), ""

    def _compared(
        self, target: Target, path: Path, names: set[str], tolerance: Tolerance | None
    ) -> dict[str, Comparison]:
        """Run a copy of a target that has the named values as outputs."""
        found: dict[str, list[Comparison]] = {}
        runtime = BACKENDS[target.backend].implementation()
        with runtime.open_copy(path, self.bundle, self.options) as runner:
            for i, sample in self.samples.items():
                sample.check(runner.inputs, tuple(sample.outputs))
                actual, known = arrays(runner(sample.inputs)), self.known[i]
                floors = {**sample.behind, **sample.floors}
                for name in sorted(actual.keys() & known.keys() & names):
                    if known[name].dtype == np.float32:
                        floor = _fitting(name, floors.get(name), known[name])
                        where = f"sample {i} {name}"
                        found.setdefault(name, []).append(
                            compare(actual[name], known[name], where, tolerance, floor)
                        )
        return {name: worst_of(comparisons) for name, comparisons in found.items()}


def _known(between: Correspondence, bundle: Bundle) -> Correspondence:
    """Refuse a model whose sites are not those that the manifest has."""
    if between.lowerings.keys() - between.sites:
        raise UnsupportedModel(f"{bundle.path}: the model has other sites; export again")
    return between


def _error(
    site: str, lowering: str, names: list[str], found: Mapping[str, Comparison]
) -> SiteError:
    comparison = worst_of(found[name] for name in names) if names else None
    return SiteError(site, lowering, tuple(names), comparison)


def _fitting(name: str, floor: Array | None, value: Array) -> Array | None:
    """Return a value's noise.

    Raises:
        UnsupportedModel: It has other channels than the value.
    """
    axis = channel_axis(value.shape)
    if floor is not None and len(floor) != (value.shape[axis] if axis else 1):
        raise UnsupportedModel(f"the noise of value {name!r} does not fit; export again")
    return floor
