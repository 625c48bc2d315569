"""From pixel embeddings to instances, and what instances and class masks tell each other. No training."""
