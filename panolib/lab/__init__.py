"""Runs that are trained once and recorded: keys, records, checkpoints, processes, provenance; nothing about segmentation."""
