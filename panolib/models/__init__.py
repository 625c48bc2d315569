"""Networks and what they cost; how they are trained belongs to `training`."""
