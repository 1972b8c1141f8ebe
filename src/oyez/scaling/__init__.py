"""How many replicas a service needs, by its lag: pure values and functions, without I/O.

`rule` decides, by what `meter` makes of successive looks at a service. `forecast` runs both against
a load on paper, and `chart` draws what came of it.
"""
