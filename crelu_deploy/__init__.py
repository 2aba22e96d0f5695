"""Export CReLU networks from PyTorch to verified, faster ONNX Runtime and TensorRT artifacts."""

__version__ = "0.1.0"
