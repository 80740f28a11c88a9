"""The work behind the commands, with or without Ray.

May import every room but cli; imports cluster where there is something to distribute.
"""
