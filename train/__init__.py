"""Stage two: trains a Vision Transformer without labels on the shards of stage one."""
