"""What runs inside of the sandbox: a fork server and the programs that it starts. It is a process of its own with the
standard library alone: nothing here imports anything of the package but its neighbours.
"""
