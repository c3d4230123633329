"""Takes images out of a finished result, and what was computed of them out of a work folder."""
