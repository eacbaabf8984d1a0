"""What the fork server imports once, so that ranks start with it."""

import torch

import hpctrain.dist.connect
import hpctrain.train.loop
import tests.train.bodies
import tests.train.ranks  # noqa: F401

torch.set_num_threads(1)
