"""Refusals in one sentence, before any model loads."""
