"""Trained networks in the forms that other programs read."""
