"""``python train.py --preset quick``: the same as ``tnav train --preset quick``."""

import sys

from tnav.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
