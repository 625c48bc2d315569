"""A person chooses the better of two segmentations: pairs, what to ask first, the answers, front ends."""
