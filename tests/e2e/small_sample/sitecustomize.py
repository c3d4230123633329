"""Read by every Python whose PYTHONPATH names this folder: the built-in sample is a small one there."""

from curate.sample.make import make_sample

make_sample.__defaults__ = (0, 160)
