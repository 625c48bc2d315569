"""Training and self-training loops of both branches; runs and records belong to `lab`, scores to `scoring`."""
