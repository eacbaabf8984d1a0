"""A small config, and the command line, for tests of what is run once and not kept."""

import subprocess
import sys

CONFIG = """
name: small
runs: {runs}
data: {{dataset: digits, split: {{validation: 0.2}}}}
model: {{name: mlp, args: {{hidden: [16]}}}}
batch: {{global: 60}}
optim: {{lr: 0.1, momentum: 0.9}}
train: {{epochs: 3, ema: 0.9}}
checkpoint: {{keep: 3}}
"""
ABALONE = """
name: rows
runs: {runs}
data:
  dataset: table
  path: {path}
  args: {{columns: [a, b, c], target: c}}
  split: {{test: 0.1}}
model: {{name: mlp, args: {{hidden: [16]}}}}
batch: {{global: 20}}
optim: {{lr: 0.05, momentum: 0.9}}
train: {{epochs: 3}}
"""


def hpctrain(*words, code=0, cwd=None):
    argv = [sys.executable, "-m", "hpctrain", *map(str, words)]
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done
