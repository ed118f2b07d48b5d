"""Files that are there whole or not at all, and are refused when they are not as written.

atomic.py          written beside its place, then renamed
digest.py          the SHA-256 of tensors
kept_run.py        a run that one file keeps
lock.py            one process at a time
no_room.py         what to say when the disk is full
safetensors_io.py  one checked file of tensors
state_file.py      what a run goes on from
syncing.py         on the disk, and not in memory alone
"""

from __future__ import annotations

from ppl_fe.files.atomic import atomic_write

__all__ = ["atomic_write"]
