"""`python -m septr_fast`, which is `septr-fast`: see `septr_fast.commands`."""

import sys

from septr_fast.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
