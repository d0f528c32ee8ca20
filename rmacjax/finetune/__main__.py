"""`python -m rmacjax.finetune` is `rmacjax finetune`."""

import sys

from rmacjax.cli import main

if __name__ == "__main__":
    sys.exit(main(["finetune", *sys.argv[1:]]))
