"""What the child of a job is told to train."""

from lora_bench.launch.worker import Order


def order_of(plan, number):
    """A whole pack of a saved plan."""
    run_ids = tuple(plan.packs[number])
    return Order(plan.path, number, run_ids, frozenset(run_ids))
