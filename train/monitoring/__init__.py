"""What a run says of itself: metrics, collapse, scores of the teacher, the closing words."""
