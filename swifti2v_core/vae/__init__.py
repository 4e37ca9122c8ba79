"""Exact streaming through the Wan video autoencoders in limited memory."""
