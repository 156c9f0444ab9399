"""A training step a head of CoCa's pooling at B/16: at least 10 times open_clip's, for any K."""

from bench.families import compare
from bench.harness import arguments, pin

if __name__ == "__main__":
    quick = arguments(__doc__).quick
    pin()
    compare("pooling_coca", "coca", target=10.0, repeats=2, quick=quick)
