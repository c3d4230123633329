"""Answers questions about finished runs from their stored vectors and pictures."""
