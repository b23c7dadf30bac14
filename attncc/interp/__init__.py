"""Interpreters on the CPU: what the language and each IR level mean. Kernels are compared with these."""
