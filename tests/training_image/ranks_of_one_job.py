"""One of several processes that train job after job together: what Python imports for it is paid for once."""

import itertools
import os
import sys
from pathlib import Path

from tuner.contract import Container
from tuner.distributed.worker import train_together
from tuner.signals import StopRequest

for told in sys.argv[1:]:
    os.environ["MASTER_PORT"], _, root = told.partition(":")
    ticks = itertools.count()
    train_together(Container(Path(root)), StopRequest(), print, lambda: float(next(ticks)))  # noqa: B023  # called here
