"""What is wrong with how topics, queues and subscriptions are set up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from oyez.brokers.kit.findings import Findings
from oyez.brokers.kit.streams import Place
from oyez.brokers.sns_sqs.connection import Aws, Missing
from oyez.brokers.sns_sqs.options import SnsSqsOptions
from oyez.brokers.sns_sqs.topology import LONGEST_RETENTION, SHORTEST_RETENTION, Topology
from oyez.brokers.sns_sqs.wire import LIMIT
from oyez.ports import Finding


async def inspect(aws: Aws, topology: Topology, options: SnsSqsOptions) -> Sequence[Finding]:
    """Findings about every stream, and about every group of each stream's system."""
    findings = Findings()
    tell = findings.tell
    tell(
        options.emulated,
        f"{options.endpoint} is not AWS: an emulator keeps events in memory",
        "leave out the option endpoint of system.broker to use AWS itself",
    )
    tell(
        options.retention > LONGEST_RETENTION,
        f"retention is {options.retention:.0f} s; SQS keeps messages for 14 days",
        "set system.retention to 14 days or less",
        grave=False,
    )
    for address in await topology.left():
        tell(
            True,
            f"queue {_name(address)} was left by an `oyez tail` that was killed",
            f"aws sqs delete-queue --queue-url {address}, then unsubscribe it from SNS",
            grave=False,
        )
    for stream, partitions in sorted(topology.streams.known.items()):
        for partition in range(partitions):
            place = (stream, partition)
            await _inspect_topic(findings, aws, topology.topic_arn(*place))
            for group in topology.of_system(stream):
                await _inspect_queue(findings, aws, topology, options, group, place)
    return findings.found


async def _inspect_topic(findings: Findings, aws: Aws, arn: str) -> None:
    try:
        answer = await aws.ask("sns", "get_topic_attributes", TopicArn=arn)
    except Missing:
        findings.tell(
            True,
            f"topic {arn} is gone, and with it every subscription",
            "publish one event to the stream: its topics are made and subscribed again",
        )
        return
    findings.tell(
        answer["Attributes"].get("ContentBasedDeduplication") == "true",
        f"{arn} drops foreign messages with the same body within 5 minutes",
        f"aws sns set-topic-attributes --topic-arn {arn} "
        "--attribute-name ContentBasedDeduplication --attribute-value false",
        grave=False,
    )


async def _inspect_queue(
    findings: Findings,
    aws: Aws,
    topology: Topology,
    options: SnsSqsOptions,
    group: str,
    place: Place,
) -> None:
    name = topology.queue_name(group, place)
    try:
        address = (await aws.ask("sqs", "get_queue_url", QueueName=name))["QueueUrl"]
        answer = await aws.ask(
            "sqs", "get_queue_attributes", QueueUrl=address, AttributeNames=["All"]
        )
    except Missing:
        findings.tell(
            True,
            f"group {group} has no queue {name}: it loses what is published",
            f"start a replica of {group}, which makes and subscribes it",
        )
        return
    topic = topology.topic_arn(*place)
    _judge_queue(findings, address, topic, answer["Attributes"], options)
    subscription = await _subscription(aws, topic, topology.queue_arn(group, place))
    _judge_subscription(findings, name, topic, subscription)


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
    findings: Findings,
    address: str,
    topic: str,
    attributes: dict[str, str],
    options: SnsSqsOptions,
) -> None:
    tell, name = findings.tell, _name(address)

    def attribute(attribute: str, value: str) -> str:
        change = f'{{"{attribute}": "{value}"}}'
        return f"aws sqs set-queue-attributes --queue-url {address} --attributes '{change}'"

    wanted = int(max(SHORTEST_RETENTION, min(options.retention, LONGEST_RETENTION)))
    kept = int(attributes.get("MessageRetentionPeriod", wanted))
    tell(
        kept < wanted,
        f"queue {name} deletes events that were not handled within {kept} s, not {wanted}",
        attribute("MessageRetentionPeriod", str(wanted)),
    )
    tell(
        bool(attributes.get("RedrivePolicy")),
        f"queue {name} has a redrive policy, which takes events away before Oyez has "
        "dead-lettered them",
        attribute("RedrivePolicy", ""),
    )
    tell(
        int(attributes.get("MaximumMessageSize", LIMIT)) < LIMIT,
        f"queue {name} takes smaller messages than its topic: SNS drops the larger ones",
        attribute("MaximumMessageSize", str(LIMIT)),
    )
    tell(
        int(attributes.get("DelaySeconds", 0)) > 0,
        f"queue {name} delays every event",
        attribute("DelaySeconds", "0"),
        grave=False,
    )
    tell(
        topic not in attributes.get("Policy", ""),
        f"the policy of queue {name} does not name {topic}: SNS may not deliver to it",
        f"allow sns.amazonaws.com sqs:SendMessage on {name} from that topic",
    )
    key = attributes.get("KmsMasterKeyId")
    tell(
        bool(key),
        f"queue {name} is encrypted with {key}: SNS drops events if it may not use it",
        "allow sns.amazonaws.com kms:GenerateDataKey* and kms:Decrypt in its policy",
        grave=False,
    )
    tell(
        attributes.get("FifoQueue") != "true",
        f"queue {name} is not FIFO: it doubles and reorders events",
        f"aws sqs delete-queue --queue-url {address}, then start a replica again",
    )


def _judge_subscription(
    findings: Findings, name: str, topic: str, attributes: dict[str, str] | None
) -> None:
    tell = findings.tell
    if attributes is None:
        tell(
            True,
            f"queue {name} is not subscribed to {topic}: it loses what is published",
            "restart a replica of its group, which subscribes it",
        )
        return
    arn = attributes.get("SubscriptionArn", "")
    command = f"aws sns set-subscription-attributes --subscription-arn {arn} --attribute-name"
    tell(
        attributes.get("FilterPolicy", "{}") not in ("", "{}", "null"),
        f"the subscription of queue {name} has a filter policy: it loses events",
        f"{command} FilterPolicy --attribute-value '{{}}'",
    )
    tell(
        attributes.get("RawMessageDelivery", "false").lower() != "true",
        f"the subscription of queue {name} wraps each event: less fits, and slower",
        f"{command} RawMessageDelivery --attribute-value true",
        grave=False,
    )


def _name(address: str) -> str:
    return address.rpartition("/")[2]
