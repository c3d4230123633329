"""Galleries ranked for queries by pooled features."""
