"""Losses as pure functions of tensors; what they are computed on is decided in `training`."""
