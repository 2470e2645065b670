"""Several engines as one: replicas, or prefill and decode apart, on this machine or on a Ray cluster."""
