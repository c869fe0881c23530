"""Figures: estimates in, figures out."""
