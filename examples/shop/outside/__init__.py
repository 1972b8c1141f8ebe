"""The world outside the shop: a payment provider, a mailbox and an SMS provider.

Three small real servers that know nothing of Oyez. Each keeps its books on disk before it
answers, and each honours the caller's idempotency key, so that the shop's promise "every effect
happens once" can be checked against somebody else's books.
"""
