"""Architectures that a checkpoint can be recognised as, each one line of a table."""

from __future__ import annotations

from crelu_deploy.models.identification import classes, identify
from crelu_deploy.models.zoo import MODELS, Model, build

__all__ = ["MODELS", "Model", "build", "classes", "identify"]
