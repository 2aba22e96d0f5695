"""What the stages return."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crelu_deploy.accuracy import Comparison
from crelu_deploy.agreement import Agreement
from crelu_deploy.latency import Latency, Paired
from crelu_deploy.proof import Proof
from crelu_deploy.targets import Target


@dataclass(frozen=True)
class Engine:
    """What a runtime built beside the lowered file.

    Attributes:
        files: What it wrote.
        layers: Kind of final layer, after all fusion -> how many there are.
    """

    files: tuple[Path, ...]
    layers: Mapping[str, int]


@dataclass(frozen=True)
class Build:
    """How the build of one target ended.

    Attributes:
        target: What was built.
        seconds: How long it took.
        lowerings: Site -> the lowering it has.
        reasons: Site -> why it did not get the lowering that was asked for.
        layers: Of an engine, kind of final layer -> how many there are: which form runs.
        proof: Of a lowered file, why it computes what the network does.
        weight_bits: Of int8, how many a weight has, 8 or 7; 0 for every other precision.
        processor: Of int8, what that was found on.
        error: Why there is no artifact; empty on success.
        skipped: Whether that is because something that it needs is not here.
    """

    target: Target
    seconds: float = 0.0
    lowerings: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    layers: Mapping[str, int] = field(default_factory=dict)
    proof: Proof | None = None
    weight_bits: int = 0
    processor: str = ""
    error: str = ""
    skipped: bool = False

    @property
    def passed(self) -> bool:
        """Whether there is an artifact."""
        return not self.error


@dataclass(frozen=True)
class SiteError:
    """The error of a target at one site.

    Attributes:
        site: Its name.
        lowering: The form it has in the target.
        values: What was compared: the site's output, or values behind it.
        comparison: Distance to the unlowered network's values; None where nothing can be compared,
            because the site is in a subgraph or a function.
    """

    site: str
    lowering: str
    values: tuple[str, ...]
    comparison: Comparison | None


@dataclass(frozen=True)
class Verification:
    """A target's distance to PyTorch, or the error that kept it from running.

    Attributes:
        target: What was verified.
        comparison: Distance of its outputs; None where it did not run.
        error: Why it did not run; empty where it did.
        agreement: How often it decides as PyTorch; None where the outputs are no decisions.
        demanded: The share of equal decisions that it must reach.
        opening: Seconds that its runtime took to open it.
        skipped: Whether it did not run because something that it needs is not here.
        note: Why it is less exact here than where it was built, and the way out, or why nothing
            was compared behind its sites; mostly empty.
        proof: Of its lowered file; None where there is none.
        sites: The errors behind its sites; empty where its runtime cannot show them.
        extremes: What it makes of NaN and infinities as inputs, in words; empty where not tried.
    """

    target: Target
    comparison: Comparison | None
    error: str = ""
    agreement: Agreement | None = None
    demanded: float = 0.0
    opening: float = 0.0
    skipped: bool = False
    note: str = ""
    proof: Proof | None = None
    sites: tuple[SiteError, ...] = ()
    extremes: str = ""

    @property
    def refuted(self) -> str:
        """What the proof found wrong with its file; empty for nothing."""
        return "; ".join(self.proof.faults[:1]) if self.proof is not None else ""

    @property
    def why(self) -> str:
        """Why it did not pass, in a line; empty where only the comparison tells."""
        if self.error or self.refuted:
            return self.error or f"its file is refuted: {self.refuted}"
        if self.wrong is None or self.comparison is None or not self.comparison.passed:
            return ""
        told = self.wrong.comparison
        return f"behind site {self.wrong.site}: {told.worst}" if told is not None else ""

    @property
    def wrong(self) -> SiteError | None:
        """The first site behind which an element is beyond tolerance."""
        for one in self.sites:
            if one.comparison is not None and not one.comparison.passed:
                return one
        return None

    @property
    def passed(self) -> bool:
        """Whether it ran, is within tolerance everywhere, decides as PyTorch, is not refuted."""
        if self.refuted or self.wrong is not None:
            return False
        agrees = self.agreement is None or self.agreement.reaches(self.demanded)
        return self.comparison is not None and self.comparison.passed and agrees


def succeeded(results: Sequence[Build | Verification]) -> bool:
    """Whether nothing failed, and something is here, if anything was asked for."""
    fine = all(result.passed or result.skipped for result in results)
    return fine and (not results or any(result.passed for result in results))


@dataclass(frozen=True)
class Row:
    """The latency of one target at one batch size.

    Attributes:
        target: What was timed.
        batch: Extent of axis 0 of the inputs.
        latency: Of one call.
        against: Its times over the baseline's of the same rounds; None without a baseline.
    """

    target: Target
    batch: int
    latency: Latency
    against: Paired | None

    @property
    def ratio(self) -> float:
        """The median of its times over the baseline's: below 1 is faster; NaN without one."""
        return math.nan if self.against is None else self.against.ratio

    @property
    def significant(self) -> bool:
        """Whether it differs from the baseline beyond chance."""
        return self.against is not None and (self.against.faster or self.against.slower)

    @property
    def clear(self) -> bool:
        """Whether the rounds were many and steady enough to tell the ratio."""
        return self.against is not None and self.against.clear


@dataclass(frozen=True)
class Load:
    """One target at one batch size, with all cores busy.

    Attributes:
        target: What ran.
        batch: Extent of axis 0 of the inputs.
        callers: Threads that called it at the same time.
        per_second: Rows of axis 0 per second, all callers together.
        peak_mib: The largest resident memory of a process that opens it and runs it once, beyond
            what the process took before; None where the system does not tell.
    """

    target: Target
    batch: int
    callers: int
    per_second: float
    peak_mib: float | None


@dataclass(frozen=True)
class Benchmark:
    """What was timed, where, and what was not and why.

    Attributes:
        environment: Hardware, threads and versions.
        rows: One per target and batch size.
        verifications: Of every target, before it was timed.
        refused: Target and batch size -> why a verified target has no row.
        end_to_end: Whether the copies to and from a GPU are in the latencies.
    """

    environment: Mapping[str, Any]
    rows: tuple[Row, ...]
    verifications: tuple[Verification, ...]
    refused: Mapping[str, str]
    end_to_end: bool = False
