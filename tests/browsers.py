"""The browser that tests look at pages with, where there is one."""

import shutil

NO_BROWSER = "no Chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome")


def find_browser() -> str | None:
    """Return the path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)
