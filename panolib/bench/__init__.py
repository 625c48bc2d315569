"""What notebook 14 measures: time and memory of the core operations beside their references."""
