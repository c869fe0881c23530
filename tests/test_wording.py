import pytest

from lora_bench import wording


@pytest.mark.parametrize(("n", "told"), [(0, "0 finished runs"), (1, "1 finished run"), (2, "2 finished runs")])
def test_only_one_of_a_thing_is_singular(n, told):
    """Every message counts with this function: a condition of its own per message had called none `0 run`."""
    assert wording.counted(n, "finished run") == told
