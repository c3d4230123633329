"""Several processes: ranks, wrapping by DDP or FSDP, signals that all agree on."""
