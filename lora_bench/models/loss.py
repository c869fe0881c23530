"""What training minimises: cross-entropy, or squared error for a single output."""

import torch
from torch.nn import functional as F


def row_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss of each row, (n_rows,).

    Args:
        logits: (n_rows, n_labels); (n_rows, 1) of a regression.
        labels: (n_rows,) label numbers, or target numbers.
    """
    if logits.shape[-1] == 1:
        return F.mse_loss(logits[:, 0], labels.to(logits.dtype), reduction="none")
    return F.cross_entropy(logits, labels.long(), reduction="none")
