"""HTTP for people and machines: probes and metrics. It reads snapshots and changes nothing."""
