"""A lowered graph is proved to compute what the canonical graph computes, without running either.

Every lowering is an identity of algebra, so both graphs are read as terms (``terms``) in which the
two sides of such an identity are one and the same; weights are compared in float64. Nothing is
taken from the code that made the lowered graph. What is proved holds for all finite inputs, up to
the order in which a runtime sums.
"""

from crelu_deploy.proof.prove import Proof, SiteProof, prove

__all__ = ["Proof", "SiteProof", "prove"]
