"""What runs in the process of a training run: packed batches, a policy with gradients, losses, the loop. Needs torch."""
