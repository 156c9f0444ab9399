"""A training step a head of a ViT-B/16's last block: at least 20 times open_clip's, for any K."""

from bench.families import compare
from bench.harness import arguments, pin

if __name__ == "__main__":
    quick = arguments(__doc__).quick
    pin()
    compare("pooling_last_block", "last_block", target=20.0, repeats=2, quick=quick)
