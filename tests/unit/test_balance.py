"""verl's shares of a batch, by numbers."""

from __future__ import annotations

import torch
from verl.trainer.ppo.v1 import trainer_base
from verl.utils import seqlen_balancing

from pathor1.rl import balance


def test_shares_are_those_that_verl_makes_of_a_tensor() -> None:
    lengths = torch.randint(1, 3000, (96,), generator=torch.Generator().manual_seed(0))
    costs = balance.workloads(lengths)
    assert costs == [24576 * length + length**2 for length in lengths.tolist()]
    of_verl = seqlen_balancing.calculate_workload(lengths)
    for ranks in (1, 8):
        shares = [
            seqlen_balancing.get_seqlen_balanced_partitions(each, k_partitions=ranks, equal_size=True)
            for each in (costs, of_verl)
        ]
        assert shares[0] == shares[1]
    balance.install()
    assert trainer_base.calculate_workload is balance.workloads
