"""Sections that go well, fail, die and hang."""

import os
import signal
import time

from benchmarks.gpu.section import NothingToMeasureError


def measures(context, emit, value):
    emit({"value": value, "of the first": context.best("first", "value")})


def raises(context, emit):
    emit({"value": 1.0})
    raise ValueError("no such thing\nsecond line")


def emits_nan(context, emit):
    emit({"value": float("nan")})


def dies(context, emit):
    emit({"value": 2.0})
    os.kill(os.getpid(), signal.SIGKILL)


def hangs(context, emit):
    emit({"value": 3.0})
    time.sleep(600)


def has_nothing(context, emit):
    raise NothingToMeasureError("no tests here")
