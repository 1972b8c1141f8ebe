"""The contracts between services: what each publishes and what each reads, as plain data.

`model` tells a service's contract from its code, as a value that is the same wherever it is made.
`schema` describes what a class writes and what it reads, `reading` decides whether the one can read
what the other writes and shows an event that it can't, `between` compares the services of a system,
and `asyncapi` tells a contract as an AsyncAPI document.
"""
