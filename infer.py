"""``python infer.py IMAGE``: the same as ``tnav infer IMAGE``."""

import sys

from tnav.cli import main

if __name__ == "__main__":
    main(["infer", *sys.argv[1:]])
