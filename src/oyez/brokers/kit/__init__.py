"""What adapters of brokers have in common: functions and small classes that an adapter holds.

An adapter derives from no behaviour of it and may do without any of it. Nothing here knows an
adapter; only `oyez.brokers.kit.aws`, which two adapters import, knows a driver.

::

    options.py   the options of a broker that has a server
    streams.py   which streams are known, the partition of a record, refusals
    calls.py     deadlines, and pauses between attempts
    watch.py     jobs that are done again and again, and looks for a reason
    heads.py     waiting for a partition to grow
    progress.py  showing what is handled
    windows.py   cutting what one call brings
    findings.py  collecting what an inspection finds
    aws.py       clients of AWS
"""
