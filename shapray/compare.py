"""``python -m shapray.compare``: see `shapray.comparing`.

Only run, never imported: as a module it would take the place of the function `shapray.compare`.
"""

import sys

from shapray.comparing import main

if __name__ != "__main__":
    raise ImportError("shapray.compare is a command, python -m shapray.compare, and a function")
sys.exit(main())
