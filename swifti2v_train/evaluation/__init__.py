"""Measuring Stage II on clips with known truth: metrics, tables and contact sheets."""
