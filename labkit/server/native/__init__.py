"""Triton's own C++ backends and Python stub, compiled on this machine into the user's cache."""
