"""``python -m shapray.prune``: see `shapray.again`.

Only run, never imported: in Python the name `shapray.prune` is the function's.
"""

import sys

from shapray.again import main

if __name__ == "__main__":
    sys.exit(main())
