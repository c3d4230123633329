"""Finds copies between two datasets."""
