"""A file becomes a module in eval mode, safely, and a module becomes a checkpoint."""

from __future__ import annotations

from crelu_deploy.checkpoint.format import Format, detect
from crelu_deploy.checkpoint.loading import Loaded, load, save

__all__ = ["Format", "Loaded", "detect", "load", "save"]
