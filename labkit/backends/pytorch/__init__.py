"""The pytorch stand-in."""
