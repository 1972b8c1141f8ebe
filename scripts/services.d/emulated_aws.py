"""moto's server, with the queues corrected where they break what AWS documents for FIFO queues.

"When you receive a message with a message group ID, no more messages for the same message group ID
are returned unless you delete the message or it becomes visible" (SQS Developer Guide, FIFO
delivery logic). moto 5.2 looks which groups are in flight once, as a long poll begins: of two polls
that wait one hands out a group's fourth message while its first is in flight, and one that waits
for a group turns without a pause.

A receipt handle ends with the visibility timeout, and a FIFO queue refuses to delete by one that
has ended (AWS Knowledge Center, "sqs-receipt-handle-error"). moto deletes by it.

A message that SQS has taken is not lost. moto replaces the list of messages without a lock, and
with it one that is sent meanwhile.

Its clock is asked four times of each message that waits whenever one is sent, so it is a quick one
here. Redrive policies are kept but not acted upon.
"""

from __future__ import annotations

import time
from copy import deepcopy

from moto.server import main
from moto.sqs import models

LOOK = 0.1
"""Seconds between two looks whether what is in flight or delayed has become visible by itself."""

_add, _delete = models.Queue.add_message, models.Queue.delete_message
_change = models.SQSBackend.change_message_visibility


def receive_message(backend, queue_name, count, wait, visibility, names=None):
    """Up to ``count`` messages, waiting ``wait`` seconds for the first."""
    queue = backend.get_queue(queue_name)
    changed = queue._messages_lock
    end = time.monotonic() + wait
    with changed:
        while True:
            taken = _take(queue, count, visibility, names or [])
            left = end - time.monotonic()
            if taken or left <= 0:
                return taken
            changed.wait(min(left, LOOK) if queue._messages else left)


def _take(queue, count, visibility, names):
    taken, locked = [], set()
    for message in queue._messages:
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
    with queue._messages_lock:
        _add(queue, message)


def delete_message(queue, receipt):
    """Not by an expired receipt, on a FIFO queue."""
    with queue._messages_lock:
        for message in queue._messages:
            named = queue.fifo_queue and message.had_receipt_handle(receipt)
            if named and (message.visible or message.receipt_handle != receipt):
                raise models.ReceiptHandleIsInvalid
        _delete(queue, receipt)
        queue._messages_lock.notify_all()


def change_message_visibility(backend, queue_name, receipt_handle, visibility_timeout):
    """Polls that wait see at once what becomes visible."""
    queue = backend.get_queue(queue_name)
    with queue._messages_lock:
        _change(backend, queue_name, receipt_handle, visibility_timeout)
        queue._messages_lock.notify_all()


models.unix_time_millis = lambda: time.time() * 1000
models.SQSBackend.receive_message = receive_message
models.SQSBackend.change_message_visibility = change_message_visibility
models.Queue.add_message = add_message
models.Queue.delete_message = delete_message

if __name__ == "__main__":
    main()
