"""Verified targets as a Triton model repository, and a Triton server to try it.

Triton is NVIDIA's inference server: https://github.com/triton-inference-server/server.
"""
