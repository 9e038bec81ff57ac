"""HTTP for people and machines: the ops port reads snapshots and changes nothing, the control port takes requests."""
