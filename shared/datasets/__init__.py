"""What a named dataset is: its parts, their members, and what lies beside an image."""
