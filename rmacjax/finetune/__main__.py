"""`python -m rmacjax.finetune` is `rmacjax finetune`."""

import sys

from rmacjax.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "finetune")
    sys.exit(main())
