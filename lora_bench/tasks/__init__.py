"""Rows, splits, tokens and metrics."""
