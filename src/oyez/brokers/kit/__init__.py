"""What adapters of brokers have in common: functions and small classes that an adapter holds.

An adapter derives from none of it and may do without any of it. Nothing here knows an adapter, or
a driver.
"""
