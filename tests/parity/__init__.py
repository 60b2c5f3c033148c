"""A test for every row of what the reference system has (PARITY), by the row's number.

Real processes and sockets behind, unmodified clients of the SDK in front; other rooms' tests look
closer at most of it.
"""
