"""The tiny model: little scenes to learn from, and how it is trained on them."""
