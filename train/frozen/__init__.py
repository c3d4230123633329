"""Models that nothing changes any more: their names, their loading, what they see in images."""
