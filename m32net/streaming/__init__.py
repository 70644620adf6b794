"""Audio out: who listens to what (registry), and one kernel call per frame (fanout)."""
