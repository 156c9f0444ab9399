"""A training step a head of SigLIP's pooling at B/16: at least 10 times timm's speed, for any K."""

from bench.families import compare
from bench.harness import arguments, pin

if __name__ == "__main__":
    quick = arguments(__doc__).quick
    pin()
    compare("pooling_map", "latent_attention", target=10.0, repeats=2, quick=quick)
