"""The onnxruntime stand-in."""
