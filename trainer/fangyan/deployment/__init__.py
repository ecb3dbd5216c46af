"""Trained models for machines without fangyan or PyTorch: as ONNX graphs, and in 8 bits for CPUs."""
