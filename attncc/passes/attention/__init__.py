"""Passes on L1."""
