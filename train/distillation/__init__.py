"""Distillation: a larger frozen teacher sets the targets, the student's average is the product."""
