"""What patches are worth: linear segmentation and depth, objects found by attention."""
