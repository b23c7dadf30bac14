"""Files written whole or not at all."""

from __future__ import annotations

import os
import uuid
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` in one step: a reader sees the old contents or the new, never a part. Raises OSError."""
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex[:12]}")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
