"""Spellings of CReLU become the canonical node, recognised by what they compute."""

from __future__ import annotations

from crelu_deploy.recognition.recognizer import (
    Recognition,
    RecognizeCReLU,
    near_misses,
    recognize,
    spelling,
)
from crelu_deploy.recognition.sites import NearMiss, OpaqueSite

__all__ = [
    "NearMiss",
    "OpaqueSite",
    "Recognition",
    "RecognizeCReLU",
    "near_misses",
    "recognize",
    "spelling",
]
