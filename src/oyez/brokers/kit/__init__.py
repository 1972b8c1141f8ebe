"""The kit of broker adapters: common functions and small classes.

Adapters inherit no behaviour from it and may use any part or none. Nothing here imports an adapter;
only `oyez.brokers.kit.aws`, which two adapters use, imports a driver.

::

    options.py   the options of a broker that has a server
    streams.py   the known streams, the partition of a record, refusals
    calls.py     deadlines, and pauses between attempts
    watch.py     periodic jobs, and queries on demand, alone or shared
    heads.py     waiting for a partition to grow
    progress.py  reporting handled positions
    windows.py   splitting the records of a call
    findings.py  collecting the findings of an inspection
    aws.py       clients of AWS
"""
