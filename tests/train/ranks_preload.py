"""What the fork server imports once, so that ranks start with it."""

import torch
import torch._dynamo  # torch's optimizers import it when the first is made, for a second
import torch.profiler  # and its DistributedDataParallel this

import hpctrain.dist.connect
import hpctrain.train.loop  # noqa: F401
import tests.train.bodies
import tests.train.ranks  # noqa: F401

torch.set_num_threads(1)
