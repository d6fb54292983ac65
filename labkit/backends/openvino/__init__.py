"""The openvino stand-in."""
