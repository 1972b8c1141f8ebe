"""Notifications: tells the customer, by e-mail and SMS, at every stage of an order."""
