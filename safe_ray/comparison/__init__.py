"""Methods compared over the tasks that they share: `python -m safe_ray.report`.

It reads the `results.parquet` of any number of sweeps, and knows nothing of what made them.
"""
