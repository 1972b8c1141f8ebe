"""The console: a system's state as web pages, asked of its services' admin ports.

`api` is the services' side and is served by every process of one; everything else is the console's
own process. Neither opens a broker or a store of the other: the console sees what services answer.
"""
