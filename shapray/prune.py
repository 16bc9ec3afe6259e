"""``python -m shapray.prune``: see `shapray.again`.

Only run, never imported: as a module it would take the place of the function `shapray.prune`.
"""

import sys

from shapray.again import main

if __name__ != "__main__":
    raise ImportError("shapray.prune is a command, python -m shapray.prune, and a function")
sys.exit(main())
