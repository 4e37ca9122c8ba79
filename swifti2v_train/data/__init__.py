"""From photos and videos to a dataset of latents, and the reader of that dataset."""
