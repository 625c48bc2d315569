"""Training and self-training of both branches. Runs and records belong to `lab`, scores to `scoring`."""
