"""A lowered graph is proved to compute what the canonical graph computes, without running either.

Every lowering is an identity of algebra, so both graphs are read as terms (``terms``) in which the
two sides of such an identity are one and the same; weights are compared in float64. With the code
that made the lowered graph it shares how a constant is read and how canonical nodes are found and
named (``lowerings.values`` and ``lowerings.sitenode``), and nothing else. What is proved holds for
all inputs for which every number on the way is finite, up to the roundings of a runtime.
"""

from crelu_deploy.proof.prove import Proof, SiteProof, prove

__all__ = ["Proof", "SiteProof", "prove"]
