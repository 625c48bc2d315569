"""Runs, trained once and recorded: keys, records, processes, provenance. Nothing about segmentation."""
