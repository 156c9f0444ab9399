"""SAFE: few-shot fine-tuning of CLIP's attention pooling, searched per task on a Ray cluster."""

__version__ = "0.1.0"
