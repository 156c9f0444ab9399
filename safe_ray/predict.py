"""`python -m safe_ray.predict`: see `safe_ray.prediction.command`."""

import sys

from safe_ray.prediction.command import main

if __name__ == "__main__":
    sys.exit(main())
