"""Real-time networks and their adversarial adaptation: what notebook 09 compares with our method."""
