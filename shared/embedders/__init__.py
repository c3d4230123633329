"""Embedders: what maps pictures to unit vectors, and where their weights come from."""
