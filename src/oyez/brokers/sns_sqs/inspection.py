"""What is wrong with how topics, queues and subscriptions are set up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oyez.brokers.sns_sqs.aws import Aws, Missing
from oyez.brokers.sns_sqs.message import LIMIT
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.brokers.sns_sqs.topology import LONGEST_RETENTION, SHORTEST_RETENTION, Place, Topology
from oyez.ports import Finding


async def inspect(aws: Aws, topology: Topology, options: SnsSqsOptions) -> Sequence[Finding]:
    """Findings about every stream, and about every group of each stream's system."""
    found: list[Finding] = []
    if options.emulated:
        found.append(
            Finding(
                grave=True,
                what=f"{options.endpoint} is not AWS: an emulator keeps events in memory",
                remedy="leave out the option endpoint of system.broker to use AWS itself",
            )
        )
    if options.retention > LONGEST_RETENTION:
        found.append(
            Finding(
                grave=False,
                what=f"retention is {options.retention:.0f} s; SQS keeps messages for 14 days",
                remedy="set system.retention to 14 days or less",
            )
        )
    for address in await topology.left():
        name = address.rpartition("/")[2]
        found.append(
            Finding(
                grave=False,
                what=f"queue {name} was left by an `oyez tail` that was killed",
                remedy=f"aws sqs delete-queue --queue-url {address}, then unsubscribe it from SNS",
            )
        )
    for stream, partitions in sorted(topology.streams.items()):
        for partition in range(partitions):
            place = (stream, partition)
            found += await _inspect_topic(aws, topology, place)
            for group in topology.of_system(stream):
                found += await _inspect_queue(aws, topology, options, group, place)
    return found


async def _inspect_topic(aws: Aws, topology: Topology, place: Place) -> list[Finding]:
    arn = topology.topic_arn(*place)
    try:
        answer = await aws.ask("sns", "get_topic_attributes", TopicArn=arn)
    except Missing:
        return [
            Finding(
                grave=True,
                what=f"topic {arn} is gone, and with it every subscription",
                remedy="publish one event to the stream: its topics are made and subscribed again",
            )
        ]
    if answer["Attributes"].get("ContentBasedDeduplication") == "true":
        return [
            Finding(
                grave=False,
                what=f"{arn} drops foreign messages with the same body within 5 minutes",
                remedy=f"aws sns set-topic-attributes --topic-arn {arn} "
                "--attribute-name ContentBasedDeduplication --attribute-value false",
            )
        ]
    return []


async def _inspect_queue(
    aws: Aws, topology: Topology, options: SnsSqsOptions, group: str, place: Place
) -> list[Finding]:
    name = topology.queue_name(group, place)
    try:
        address = (await aws.ask("sqs", "get_queue_url", QueueName=name))["QueueUrl"]
        answer = await aws.ask(
            "sqs", "get_queue_attributes", QueueUrl=address, AttributeNames=["All"]
        )
    except Missing:
        return [
            Finding(
                grave=True,
                what=f"group {group} has no queue {name}: it loses what is published",
                remedy=f"start a replica of {group}, which makes and subscribes it",
            )
        ]
    topic = topology.topic_arn(*place)
    subscription = await _subscription(aws, topic, topology.queue_arn(group, place))
    return [
        *_judge_queue(address, topic, answer["Attributes"], options),
        *_judge_subscription(name, topic, subscription),
    ]


async def _subscription(aws: Aws, topic: str, queue: str) -> dict[str, str] | None:
    """The attributes of the queue's subscription; None when it has none."""
    more: dict[str, Any] = {}
    while True:
        answer = await aws.ask("sns", "list_subscriptions_by_topic", TopicArn=topic, **more)
        for each in answer["Subscriptions"]:
            if each["Endpoint"] == queue:
                arn = each["SubscriptionArn"]
                found = await aws.ask("sns", "get_subscription_attributes", SubscriptionArn=arn)
                return dict(found["Attributes"])
        if not answer.get("NextToken"):
            return None
        more = {"NextToken": answer["NextToken"]}


def _judge_queue(
    address: str, topic: str, attributes: dict[str, str], options: SnsSqsOptions
) -> list[Finding]:
    name = address.rpartition("/")[2]

    def finding(what: str, value: str, *, grave: bool) -> Finding:
        command = f"aws sqs set-queue-attributes --queue-url {address} --attributes '{value}'"
        return Finding(grave=grave, what=f"queue {name} {what}", remedy=command)

    found: list[Finding] = []
    wanted = int(max(SHORTEST_RETENTION, min(options.retention, LONGEST_RETENTION)))
    kept = int(attributes.get("MessageRetentionPeriod", wanted))
    if kept < wanted:
        what = f"deletes events that were not handled within {kept} s, not {wanted}"
        found.append(finding(what, f'{{"MessageRetentionPeriod": "{wanted}"}}', grave=True))
    if attributes.get("RedrivePolicy"):
        what = "has a redrive policy, which takes events away before Oyez has dead-lettered them"
        found.append(finding(what, '{"RedrivePolicy": ""}', grave=True))
    if int(attributes.get("MaximumMessageSize", LIMIT)) < LIMIT:
        what = "takes smaller messages than its topic: SNS drops the larger ones"
        found.append(finding(what, f'{{"MaximumMessageSize": "{LIMIT}"}}', grave=True))
    if int(attributes.get("DelaySeconds", 0)) > 0:
        found.append(finding("delays every event", '{"DelaySeconds": "0"}', grave=False))
    if topic not in attributes.get("Policy", ""):
        found.append(
            Finding(
                grave=True,
                what=f"the policy of queue {name} does not name {topic}: SNS may not deliver to it",
                remedy=f"allow sns.amazonaws.com sqs:SendMessage on {name} from that topic",
            )
        )
    key = attributes.get("KmsMasterKeyId")
    if key:
        found.append(
            Finding(
                grave=False,
                what=f"queue {name} is encrypted with {key}: SNS drops events if it may not use it",
                remedy="allow sns.amazonaws.com kms:GenerateDataKey* and kms:Decrypt in its policy",
            )
        )
    if attributes.get("FifoQueue") != "true":
        found.append(
            Finding(
                grave=True,
                what=f"queue {name} is not FIFO: it doubles and reorders events",
                remedy=f"aws sqs delete-queue --queue-url {address}, then start a replica again",
            )
        )
    return found


def _judge_subscription(name: str, topic: str, attributes: dict[str, str] | None) -> list[Finding]:
    if attributes is None:
        return [
            Finding(
                grave=True,
                what=f"queue {name} is not subscribed to {topic}: it loses what is published",
                remedy="restart a replica of its group, which subscribes it",
            )
        ]
    arn = attributes.get("SubscriptionArn", "")
    command = f"aws sns set-subscription-attributes --subscription-arn {arn} --attribute-name"
    found: list[Finding] = []
    if attributes.get("FilterPolicy", "{}") not in ("", "{}", "null"):
        found.append(
            Finding(
                grave=True,
                what=f"the subscription of queue {name} has a filter policy: it loses events",
                remedy=f"{command} FilterPolicy --attribute-value '{{}}'",
            )
        )
    if attributes.get("RawMessageDelivery", "false").lower() != "true":
        found.append(
            Finding(
                grave=False,
                what=f"the subscription of queue {name} wraps each event: less fits, and slower",
                remedy=f"{command} RawMessageDelivery --attribute-value true",
            )
        )
    return found
