"""The long-context suite: what a stream still knows of a long prompt, beside dense attention."""
