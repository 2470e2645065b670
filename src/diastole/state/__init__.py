"""State of streams: leases on pages (key/value rows) and cells (fixed-size state), the prefix cache, the host tier."""
