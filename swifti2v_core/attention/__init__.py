"""Attention inside a window, inside temporal windows, and the choice of its kernel."""
