"""Accuracy experiments: what is trained, the tables they fill, and the pictures of these tables."""
