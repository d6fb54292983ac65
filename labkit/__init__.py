"""Shared code of the model-deployment lab; importing it has no side effects."""

__version__ = "0.1.0"
