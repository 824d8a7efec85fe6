"""Analysis of captured heaps: pure functions on the columns of a file (see docs/heap.md).

:mod:`columns` and :mod:`totals` need the standard library alone; everything that follows
references needs numpy, and retained sizes need igraph: the extra ``heap``. No agent imports this.
"""
