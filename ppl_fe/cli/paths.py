"""Files to read and to write, looked at before a network is built or hours are spent."""

from __future__ import annotations

from pathlib import Path

from ppl_fe.arguments import did_you_mean


def require_path(option: str, path: str) -> Path:
    """Refuse a file or folder that is not there, with the nearest name in its folder.

    Raises:
        FileNotFoundError: there is nothing at the path.
    """
    wanted = Path(path)
    if wanted.exists():
        return wanted
    if not wanted.parent.is_dir():
        raise FileNotFoundError(f"{option}: there is no folder {str(wanted.parent)!r}")
    near = did_you_mean(wanted.name, (entry.name for entry in wanted.parent.iterdir()))
    raise FileNotFoundError(f"{option}: there is nothing at {path}{near and f'; {near}'}")


def check_output(option: str, path: str) -> None:
    """Refuse a file that cannot be written.

    Raises:
        ValueError: its folder does not exist, or it is a folder itself.
    """
    if not Path(path).parent.is_dir():
        raise ValueError(f"{option}: there is no folder {str(Path(path).parent)!r}")
    if Path(path).is_dir():
        raise ValueError(f"{option} must be a file, {path!r} is a folder")


def check_new_folder(option: str, path: str) -> None:
    """Refuse a folder that is there already: what it holds is not written over.

    Raises:
        ValueError: as it says.
    """
    if Path(path).exists():
        raise ValueError(f"{option}: {path} already exists; give a new folder")
