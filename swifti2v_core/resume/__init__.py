"""Saved segments of an interrupted run, and the fingerprints that identify it."""
