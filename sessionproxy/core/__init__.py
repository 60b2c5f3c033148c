"""Sessions: who has which backend, for how long, and what belongs to which request.

Knows no HTTP and no process. Neighbours: `frontend` drives it, `backends` serve it.
"""
