"""Audio out: who listens to what (registry), and one kernel call per listener per frame (fanout)."""
