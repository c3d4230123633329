"""What both stages need: datasets, decoding, embedders, shards, configuration, storage."""
