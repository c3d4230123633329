"""The page of a training: a verdict, curves, pictures over time, and the recipe."""
