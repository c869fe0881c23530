"""Which weight matrices should LoRA adapt, at which rank, and how sure can we be?"""

__version__ = "0.1.0"
