"""hpctrain: data-parallel training on Slurm clusters from one YAML file."""

__version__ = "0.1.0"
