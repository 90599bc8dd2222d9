"""Measurements of the pipeline executor on the CPU."""
