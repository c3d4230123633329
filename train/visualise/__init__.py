"""Pictures of what a frozen model sees: attention, principal components of patches, neighbours."""
