"""attncc compiles a short text that says what an attention variant computes into a GPU kernel.

kernel = attncc.compile("gemma2_local.attn", window=1024)
out, lse = kernel(q, k, v, return_lse=True)
"""

from attncc.diagnostics import AttnError

__version__ = "0.1.0"
__all__ = ["AttnError", "Kernel", "__version__", "compile"]


def __getattr__(name: str):
    # attncc.entry imports torch; `import attncc` and the commands that need no tensors do not.
    if name in ("compile", "Kernel"):
        from attncc import entry

        return getattr(entry, name)
    raise AttributeError(f"module `attncc` has no attribute `{name}`")
