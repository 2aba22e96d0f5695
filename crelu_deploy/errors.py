"""Everything a user can do wrong, as one tree of exceptions.

* ``DeployError``: caught by the command line, which prints the message without a traceback.

  * ``CheckpointError``: a file that cannot be loaded as a model.
  * ``ExportError``: a module that PyTorch cannot run or export.
  * ``UnsupportedModel``: an ONNX model, plan or sample set that the program refuses.
  * ``BackendUnavailable``: a runtime or library that is not installed here.
  * ``BuildError``: a runtime that refused a model, or an output that could not be written.

A message says what is wrong, where, what was expected and found, and the way out.
"""

from __future__ import annotations


class DeployError(Exception):
    """A failure that the user can mend; the message is complete without a traceback."""


class CheckpointError(DeployError):
    """A file cannot be loaded as a model."""


class ExportError(DeployError):
    """A module cannot be run on the given inputs or exported to ONNX."""


class UnsupportedModel(DeployError):
    """An ONNX model, a plan or a sample set is refused."""


class BackendUnavailable(DeployError):
    """A runtime, a device or a library is missing on this machine."""


class BuildError(DeployError):
    """A runtime refused a model, or an artifact could not be written."""
