"""Ship a checkpoint: its averaged weights as fp16 safetensors that plain open_clip loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from safetensors.torch import save_file

from pipelines.pretrain import train


def main() -> None:
    """Write the model file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="folder that train.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="the .safetensors file to write")
    options = parser.parse_args()
    half = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in train.weights(options.run, "ema").items()
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, options.out, metadata={"format": "pt"})
    options.out.chmod(0o644)
    print(f"{options.out}: {options.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
