"""Embedded tasks: sentences and labels from four grammars."""
