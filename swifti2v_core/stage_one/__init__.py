"""Stage I, photo to motion: camera moves, chunks of long clips, and noise reshifting."""
