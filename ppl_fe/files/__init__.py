"""Files that are there whole or not at all, and are refused when they are not as written.

atomic.py          written beside its place, then renamed
digest.py          the SHA-256 of tensors
safetensors_io.py  one checked file of tensors
"""

from __future__ import annotations

from ppl_fe.files.atomic import atomic_write

__all__ = ["atomic_write"]
