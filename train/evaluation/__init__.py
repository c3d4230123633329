"""What a frozen model is worth: its features, and k-NN, probes, retrieval, dense tasks on them."""
