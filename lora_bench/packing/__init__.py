"""Many adapters on one backbone, and methods that need one of their own."""
