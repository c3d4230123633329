"""From shards to batches of views: index, order, decoding, crops, masks; and labelled images."""
