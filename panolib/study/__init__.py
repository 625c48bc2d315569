"""Which runs answer which question: profiles, the ladder, the experiments, how each kind of run is done."""
