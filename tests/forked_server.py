"""What the server of `forked` imports at its start, without a search for garbage.

Nor does a process that is forked from it look through all this for garbage. A server's own list of
imports would be searched some ten times while it grows, a fifth of the start.
"""

import atexit
import gc
import os
from contextlib import suppress
from importlib import import_module

IMPORTED = (
    *("pytest", "hypothesis", "train.data.loader", "train.cli", "train.loop", "train.launch"),
    *("curate.pipeline", "curate.cli.run", "curate.report.summary", "faiss", "skimage.feature"),
    *("pandas", "torch.utils.tensorboard", "torch.distributed.checkpoint", "train.preview"),
)
"""Two commands, and what they import when they are run.

Not what a command takes that only one test runs like this, as evaluation and its scikit-learn.
"""

gc.disable()
for name in IMPORTED:
    with suppress(ImportError):
        import_module(name)
gc.freeze()
gc.enable()
atexit.register(gc.unfreeze)  # or libraries complain of what they find alive
# As it was before `forked` put two folders first.
if before := os.environ.pop("PYTHONPATH").split(os.pathsep)[2:]:
    os.environ["PYTHONPATH"] = os.pathsep.join(before)
