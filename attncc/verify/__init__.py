"""Compares kernels with the float64 reference on a GPU: many specs, targets, groups and shapes, each in a guarded step."""
