"""Which runs answer which question: settings of a profile, the ladder, the experiments, and how each kind of run is done."""
