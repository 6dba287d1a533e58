"""Is a machine fit?

machine.py   this one: can it build?
stack.py     any one that has said what it runs: is it that target, with that profile?
"""
