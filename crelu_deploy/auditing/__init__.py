"""How much "verified" means for a network: faults are planted, and counted who catches them."""

from crelu_deploy.auditing.auditor import Audit, Planted
from crelu_deploy.auditing.built import audit
from crelu_deploy.auditing.lowered import audit_file

__all__ = ["Audit", "Planted", "audit", "audit_file"]
