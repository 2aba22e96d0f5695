"""Architectures that a checkpoint can be recognised as, each one line of a table."""

from __future__ import annotations

from crelu_deploy.models.counting import Cost, cost
from crelu_deploy.models.identification import classes, identify
from crelu_deploy.models.listing import Entry, entries
from crelu_deploy.models.zoo import MODELS, Model, build, find

__all__ = [
    "MODELS",
    "Cost",
    "Entry",
    "Model",
    "build",
    "classes",
    "cost",
    "entries",
    "find",
    "identify",
]
