"""Where should the adapter go? Predictions from the untrained backbone and a few batches."""
