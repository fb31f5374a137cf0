"""The command line. `__main__` parses, one file a command acts; every import that costs is made by the command that
needs it.
"""
