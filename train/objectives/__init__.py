"""What is optimised: DINO, iBOT and KoLeo, with their centering and settings."""
