"""Walks: the order in which pages are read, and the proof that none is missed. Generators without I/O.

A walk yields steps and is sent the replies to their requests. Rebuilt from any position it yielded, it yields the same
rest; so a walk can be stopped and resumed anywhere, and tested on a list of pages.
"""
