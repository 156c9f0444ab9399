"""`python -m safe_ray.export`: see `safe_ray.exporting.command`."""

import sys

from safe_ray.exporting.command import main

if __name__ == "__main__":
    sys.exit(main())
