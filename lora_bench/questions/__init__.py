"""What is asked of a store, a module a question."""
