"""Searches the stored vectors of a finished run."""
