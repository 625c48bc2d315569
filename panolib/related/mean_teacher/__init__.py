"""A peer on the same data and budget: torch-em's mean teacher on nuclei, with its networks and trainers."""
