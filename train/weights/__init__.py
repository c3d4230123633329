"""Readers of weights: of backbones, of the networks of a run, of what a run has trained."""
