"""Pages of HTML: their common frame, charts, sheets of pictures, and serving one while a run works."""
