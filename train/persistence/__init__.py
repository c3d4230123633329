"""What survives the process: run folder, snapshots, checkpoints, going on from another run."""
