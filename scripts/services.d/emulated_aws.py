"""moto's server, with the queues corrected where they break what AWS documents for FIFO queues.

moto 5.2 looks which message groups are in flight once, as a long poll begins, so of two polls that
wait one hands out a group's fourth message while its first is in flight; it replaces the list of
messages without a lock, so one that is sent during a deletion is lost; and it deletes by a receipt
that has expired. AWS: "when you receive a message with a message group ID, no more messages for the
same message group ID are returned unless you delete the message or it becomes visible" (SQS
Developer Guide, FIFO delivery logic); "if the visibility timeout … has expired, the delete fails"
(API reference, DeleteMessage, FIFO queues). Redrive policies are kept but not acted upon.
"""

from __future__ import annotations

import threading
import time
from copy import deepcopy

from moto.server import main
from moto.sqs import models

PAUSE = 0.02
"""Seconds between two looks of a long poll."""

_lock = threading.RLock()
_add, _delete = models.Queue.add_message, models.Queue.delete_message


def receive_message(backend, queue_name, count, wait, visibility, names=None):
    """Up to ``count`` messages, waiting ``wait`` seconds for the first."""
    queue = backend.get_queue(queue_name)
    end = time.monotonic() + wait
    while True:
        with _lock:
            taken = _take(queue, count, visibility, names or [])
        if taken or time.monotonic() >= end:
            return taken
        time.sleep(PAUSE)


def _take(queue, count, visibility, names):
    taken, locked = [], set()
    for message in list(queue._messages):
        group = message.group_id if queue.fifo_queue else None
        if group in locked:
            continue
        if not message.visible or message.delayed:
            if group is not None:
                locked.add(group)
            continue
        message.mark_received(visibility_timeout=visibility)
        queue.pending_messages.add(message)
        shown = deepcopy(message)
        models._filter_message_attributes(shown, names)
        taken.append(shown)
        if len(taken) == count:
            break
    return taken


def add_message(queue, message):
    """Not while another is being deleted."""
    with _lock:
        _add(queue, message)


def delete_message(queue, receipt):
    """Not by an expired receipt, on a FIFO queue."""
    with _lock:
        for message in queue._messages:
            named = queue.fifo_queue and message.had_receipt_handle(receipt)
            if named and (message.visible or message.receipt_handle != receipt):
                raise models.ReceiptHandleIsInvalid
        _delete(queue, receipt)


models.SQSBackend.receive_message = receive_message
models.Queue.add_message = add_message
models.Queue.delete_message = delete_message

if __name__ == "__main__":
    main()
