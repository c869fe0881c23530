"""Train many adapters on one backbone, and methods that need a backbone of their own."""
