"""Measurements: every script appends JSON lines with provenance to bench/results/."""
