"""`python -m safe_ray.serve`: see `safe_ray.serving.command`."""

import sys

from safe_ray.serving.command import main

if __name__ == "__main__":
    sys.exit(main())
