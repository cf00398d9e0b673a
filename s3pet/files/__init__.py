"""Everything on disk goes through this room: one way to read each format, one way to write a file or a folder.

    reading  one door per format: a regular file of bounded size, parsed and checked; anything else is one error
    kinds    what a field or a column may hold
    writing  files and folders that are there completely or not at all, and the lock of a folder in use

Nothing here knows the method, and nothing that is read is executed.
"""

from s3pet.files.kinds import FLAG, TEXT, TEXTS, Kind, check_record, number, optional, whole
from s3pet.files.reading import read_arrow, read_csv, read_json, read_lines, read_table, read_tensors, read_yaml, reading
from s3pet.files.writing import (
    check_signature,
    claim,
    new_folder,
    refuse_finished,
    saved_files,
    signed,
    write_json,
    write_table,
    write_tensors,
    write_text,
)

__all__ = [
    *("FLAG", "TEXT", "TEXTS", "Kind", "check_record", "number", "optional", "whole"),
    *("read_arrow", "read_csv", "read_json", "read_lines", "read_table", "read_tensors", "read_yaml", "reading"),
    *("check_signature", "claim", "new_folder", "refuse_finished", "saved_files", "signed"),
    *("write_json", "write_table", "write_tensors", "write_text"),
]
