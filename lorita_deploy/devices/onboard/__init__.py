"""What runs on the device: sent there for every call and run by its Python; nothing is installed. Valid Python 3.6.

    locks.py   who times something here          store.py   files by their content
    runs.py    runs that outlive a connection    agent.py   one request in, one reply out

They know one another, and the runner's ``machine``, by their bare names.
"""
