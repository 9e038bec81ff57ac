"""Fleet memory: one ConfigMap lists the adapters that every replica is to have, and any pod may write it.

What one replica was given, every replica has, and every new one gets. Kubernetes' API and etcd are the engine: no
controller, no leader, no gossip. The fleet's ConfigMap is one more declared config, which pods can write: read by a
list and a watch (`source`), written by compare-and-swap (`publisher`), and remembered by each pod, so that a restart
needs no API. Nothing here knows of engines, heartbeats or checkpoints; those who do use it as follows.

Pure, for the rule in `reconcile`, which owns the document in force (it stands in the checkpoint):

* `document`: `FleetDocument`, its `Entry`s, what else a reading may be, and `wanted(document, base)`: the entries that
  concern a pod, by name. Until the base model's root is known from a listing, nothing is wanted.
* `codec.decode` and `encode`: text to a reading and back.
* `changes.judge(in_force, found.reading, accepted=found.accepted)`: the document in force from now on, or `Held` with
  its reason, `FleetEmptied` or `FleetReverted`, and what is lost. `changes.difference` tells what the step from one
  document to the next means for this pod. `Found.token` is what the annotation `changes.ACCEPT_ANNOTATION` must hold to
  accept what is held.

The edge, for the daemon, which builds it and runs its task:

* `cluster.in_cluster(os.environ)`: where the API is. `kubernetes.KubernetesApi(cluster, name, offload)`: the client of
  one ConfigMap; `offload` makes a blocking call in a thread with a deadline. `close` it in the end.
* `source.FleetSource(api, key, clock=, jitter=, on_change=)`: `run` is a task for ever, `snapshot` the newest
  `Snapshot`, `on_change` rings for a heartbeat. `snapshot.found` goes to `judge`. The conditions: `problem` is a
  `Missing` (`FleetGone`), `Unreadable` or `Newer` (`FleetUnreadable`); `is_away(now)` is `FleetAway`, `is_denied` is
  `FleetDenied` (`denied.detail`, `denied.hint`); `found` still None once a pod has waited `ready_within` is
  `FleetUnknown`. `now - heard_at` is the age of what is known.
* `publisher.FleetPublisher(api, key, clock=, jitter=)`: `publish(Put(…) or TakeOut(…), in_force)` comes to `Published`
  (200, `X-Lora-Fleet: serial=…`), `writes.Refused` (a client's error) or `NotPublished` (503; the document may still
  come to say so where it is `in_doubt`). It takes 5 s at most.

Source and publisher ask `api.ConfigMapApi`, so a simulation gives them an API server of its own. All expected failures
are values; what is raised is a bug.
"""
