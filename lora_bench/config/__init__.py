"""A run as configured: its fields, how they are composed and checked, and its identity."""
