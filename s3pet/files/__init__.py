"""Everything on disk goes through this room: one way to read each format, one way to write a file or a folder.

    reading  one door per format: a regular file of bounded size, parsed and checked; anything else is one error
    kinds    what a field or a column may hold
    columns  the same for the tables that a user passes
    writing  files and folders that are there completely or not at all, and the lock of a folder in use

Nothing here knows the method, and nothing that is read is executed.
"""
