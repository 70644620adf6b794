"""Audio in: sources, the ring, the engine thread with its encoders, the bridge to the reactor."""
