"""Amazon SNS and SQS: each partition is a FIFO topic, and a FIFO queue for each group that reads.

``sns+sqs://REGION``, credentials from where AWS tools look for them, or before the region as
``KEY:SECRET@``. SQS keeps a message until it is deleted and no longer: there is no history, and a
group gets what is published from its first `open` on.

**Layout.** Stream ``shop.orders`` has for partition 3 the topic ``shop_orders__3.fifo``, and group
``shop.payments`` the queue ``shop_payments__shop_orders__3.fifo`` on it, subscribed with raw
delivery and without a filter policy (a change of those takes up to 15 minutes to hold, and a
message without the attribute would be lost): so each partition has the throughput of a topic, and a
stream may have 100 groups. An empty queue ``oyez-stream-NAME`` says that a stream exists, with name
and count in its tags, and ``oyez-group-NAME`` that a group does: one ListQueues finds both. Whoever
makes a stream of a system first subscribes all groups of that system, then publishes; a group that
opens first says that it exists, then subscribes to all streams of its system. So whichever comes
first, a running group misses nothing of a new stream. What is lost to a group: what was published
before it first opened; what is published in the moment in which AWS makes a new subscription or a
new queue effective everywhere, of which it promises no length; and, of a stream of *another*
system, what came before `read` was first called. A group has queues for all streams of its system,
read or not; what nobody reads is deleted after ``retention``, and costs until then.

**Order.** The message group is the key, or its hash where SQS does not allow the key, or the
event's id where there is none. Each message has a deduplication id of its own, so a redrive within
5 minutes is not swallowed; only a retry within one `publish` repeats it.

**Foreign producers** publish a structured CloudEvent with the key as MessageGroupId to the topic of
partition murmur2(key) mod P (Kafka's function); messages in binary form (attributes ``ce-…`` or
``ce_…``), in an SNS envelope and CloudEvents batches are read too.

**Hand-over.** What a process held that was killed comes again after ``visibility``, what a reader
held that ended at once. An event that comes again has another position; the inbox knows it.

**Looking on.** Without a group, `read` makes queues ``look-…`` that keep messages for a minute, and
`close` deletes them: of a stream that exists it gives what is published from then on, of a new one
what is published after it was found. One that is killed leaves them: `inspect` names those.

**Costs.** An idle reader asks SQS once in ``wait`` seconds for each partition, and each such
request is billed and has a connection of its own: take few partitions. Every process looks for
streams once in ``poll`` seconds. Events of one key that are published at once share a message.

::

    broker.py      the face, `oyez.ports.Broker`
    options.py     what the URL may set
    connection.py  requests and their errors
    topology.py    topics, queues, subscriptions: which there are, and how they come to be
    publisher.py   publishing to one partition, in order
    reader.py      reading one partition: what is held, for how long, and what becomes of it
    wire.py        a record as a message, and back
    inspection.py  what of the setup loses events
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

from oyez.adapters import driver
from oyez.ambient import Ambient
from oyez.endpoint import Endpoint
from oyez.ports import Broker

PORT = 443


def connect(
    url: str, ambient: Ambient, *, root: Path, group: str, partitions: int, retention: float
) -> Broker:
    """Return the broker at a URL, not opened yet; see `oyez.brokers.Connect`."""
    with driver("oyez[sns_sqs]"):
        from oyez.brokers.sns_sqs.broker import SnsSqsBroker
        from oyez.brokers.sns_sqs.options import SnsSqsOptions
    endpoint = Endpoint(url, port=PORT)
    options = endpoint.options(SnsSqsOptions, partitions=partitions, retention=retention)
    return SnsSqsBroker(endpoint, ambient, options, group)


def site(url: str, *, root: Path) -> str:
    """Return the site of a URL, its region and account; see `oyez.sites.Site`."""
    # The access key determines the account.
    endpoint = Endpoint(url, port=PORT)
    regions = ",".join(sorted({host.lower() for host, _ in endpoint.hosts}))
    at = urlsplit(endpoint.given.get("endpoint", ""))
    port = {"http": ":80", "https": ":443"}.get(at.scheme, "")
    host = at.netloc.lower().rpartition("@")[2].removesuffix(port)
    path = at.path.rstrip("/")
    return f"sns+sqs://{endpoint.user or ''}@{regions}/{endpoint.path} {at.scheme}://{host}{path}"
