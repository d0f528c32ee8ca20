"""`python -m rmacjax` is `rmacjax`."""

import sys

from rmacjax.cli import main

if __name__ == "__main__":
    sys.exit(main())
