"""Take over what the Hugging Face cache already holds, so that nothing is downloaded twice."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tasks.weights import checksum
from tasks.weights.manifest import File


def adopt(repo: str, files: Sequence[File], folder: Path) -> int:
    """Link each file that the cache has, whole and with the right hash, into `folder`; give the bytes saved.

    The cache names its blobs by hash. A hard link is safe: nobody writes into a blob, and mlxq replaces files
    by rename alone. On another disk the file is copied, which is still cheaper than a download.
    """
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE) / ("models--" + repo.replace("/", "--")) / "blobs"
    return sum(file.size for file in files if _take(blobs / file.digest, file, folder / file.name))


def _take(blob: Path, file: File, target: Path) -> bool:
    if target.exists() or not blob.is_file() or blob.stat().st_size != file.size:
        return False
    if checksum.of_file(blob, file.algorithm) != file.digest:
        return False
    link(blob, target)
    return True


def link(source: Path, target: Path) -> None:
    """Give the file a second name, or copy it where the two lie on different disks."""
    try:
        os.link(source, target)
    except OSError as problem:
        if problem.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP}:
            raise
        temporary = target.with_name(target.name + ".copy")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
