"""The folder of shards that stage one writes and stage two reads."""
