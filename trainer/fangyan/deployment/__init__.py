"""Trained models for machines without fangyan or PyTorch: as ONNX graphs, and in 8 bits for CPUs."""

# What ``fangyan export --format`` may say.
FORMATS = ("onnx", "int8", "gguf")
