"""Stage one, curate: from a crawl and a seed dataset to shards and reports."""
