"""Stage II, motion to 2K video: the segment plan, the segment loop, and its controls."""
