"""An environment in which a process finds nothing that was compiled before."""

from __future__ import annotations

import os


def nothing_compiled(folder: str) -> dict[str, str]:
    """Give this process's environment with all that Inductor keeps in an empty folder.

    `TORCHINDUCTOR_CACHE_DIR` is not all: the header that its kernels share is compiled once and
    kept with the temporary files, whatever that variable says. It takes longer than a small step.
    """
    return {
        **os.environ,
        "TMPDIR": folder,
        "TORCHINDUCTOR_CACHE_DIR": os.path.join(folder, "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
