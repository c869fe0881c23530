"""Mirror the store on W&B: while a run trains, and afterwards."""
