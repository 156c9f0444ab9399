"""`python -m safe_ray.report`: see `safe_ray.comparison.command`."""

import sys

from safe_ray.comparison.command import main

if __name__ == "__main__":
    sys.exit(main())
