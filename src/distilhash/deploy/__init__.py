"""A hasher outside PyTorch: exported to ONNX, quantized, and run by ONNX Runtime."""
