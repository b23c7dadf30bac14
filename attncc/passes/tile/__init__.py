"""Passes on L2."""
