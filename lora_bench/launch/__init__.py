"""Sweeps: plans, packs, jobs, and what is told of them."""
