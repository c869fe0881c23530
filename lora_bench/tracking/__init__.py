"""W&B, the mirror of the store: while a run trains, and afterwards."""
