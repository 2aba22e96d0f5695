"""How much "verified" means for a bundle: faults are planted, and counted who catches them."""

from crelu_deploy.auditing.auditor import Audit, Planted, audit

__all__ = ["Audit", "Planted", "audit"]
