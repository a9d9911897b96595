"""One of two processes that train together: accumulates its half of the rows, sums the gradients, saves them.

python -m tests.training.compute_child MODEL RENDEZVOUS RANK OUT
"""

import sys
from pathlib import Path

import torch

from app.training.worker import losses
from app.training.worker.opening import open_policy
from app.training.worker.policy import reduce_gradients
from tests.training import compute_models as tiny


def main() -> None:
    model, rendezvous, rank, out = sys.argv[1:]
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
    policy = open_policy(Path(model), config=tiny.config(), device="cpu")
    tiny.stir(policy)
    rows = tiny.examples()
    policy.accumulate(policy.split(rows[int(rank) :: 2]), losses.sft(losses.sft_total(rows)))
    reduce_gradients(policy)
    torch.save([each.grad for each in policy.parameters()], out)
    policy.close()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
