"""Chaos with real processes: faults from outside, a ledger of what really happened, and a table of what was found.

Each gate is a function whose size is a parameter. The suite runs the quick form (``test_chaos``), each with a control
that removes the guard the gate is about; ``make chaos`` runs the long form and writes the table.
"""
