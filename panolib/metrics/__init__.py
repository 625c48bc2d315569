"""Scores as pure functions of label maps; which network is scored on which data belongs to `scoring`."""
