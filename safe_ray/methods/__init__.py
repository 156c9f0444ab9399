"""Methods to adapt CLIP to a task: one file a method, or a family of them.

A method says how it is fitted to a task, which knobs are solved exactly on the validation samples
afterwards, and its logits. Nothing here knows Ray, MLflow or Optuna: a method is fitted and judged
in a notebook, from pooled features and trained heads. A sweep searches SAFE alone.
"""

from safe_ray.methods.base import Fitted, Method, TaskData, Values
from safe_ray.methods.features import Features

__all__ = ["Features", "Fitted", "Method", "TaskData", "Values"]
