"""Banks of attention-pooling heads, the blend with the original pooling, and head artifacts.

Plain PyTorch: importable in a notebook without Ray, MLflow or Optuna.
"""
