"""Related systems: real-time adaptation and DETR, each with its networks, training and runs."""
