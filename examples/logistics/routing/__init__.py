"""Routing: plans the tours of each round, and plans them anew when something has changed."""
