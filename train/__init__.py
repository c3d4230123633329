"""Stage two, the trainer: reads the shards that stage one writes. Not built yet."""
