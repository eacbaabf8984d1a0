"""What runs as a rank: the world proof, the training loop, or the user's own program."""
