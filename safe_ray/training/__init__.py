"""Training a bank: one pure-PyTorch loop, its checkpoints, and its Ray Train wrapper."""
